//! User-space side of the vdma driver.

//! vhost-user DMA device.

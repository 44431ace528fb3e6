//! The environment that guests are built in: mirror, package lists and kernel versions.
//!
//! The result is recorded in the cache and used until `--refresh` or `cargo vm clean`; a run that
//! finds everything there does not use the network.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    host::{
        cache,
        cache::Cache,
        mirror,
        packages::{SUITE, Snapshot},
        requirements,
    },
    kernel::{stock, stock::StockKernel},
};

/// File of the record, in the cache.
const RECORD: &str = "environment.json";

/// The resolved versions.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Record {
    /// Mirror of all packages.
    pub(crate) mirror: String,
    /// Debian release of tools and guests.
    pub(crate) suite: String,
    /// Id of the package lists in use.
    snapshot: String,
    /// Kernels that the mirror offers, newest first.
    pub(crate) kernels: Vec<StockKernel>,
}

/// A resolved environment.
pub(crate) struct Environment<'a> {
    pub(crate) record: Record,
    pub(crate) snapshot: Snapshot<'a>,
}

impl<'a> Environment<'a> {
    /// Opens the recorded environment; resolves it if there is no record, if `refresh` is set, or
    /// if `mirror` differs from the recorded one.
    pub(crate) fn open(cache: &'a Cache, mirror: Option<&str>, refresh: bool) -> Result<Self> {
        requirements::provide_packages()?;
        if !refresh && let Some(environment) = Self::recorded(cache, mirror) {
            return Ok(environment);
        }
        let _lock = cache.lock("environment")?;
        // Another run may have resolved it while this one waited.
        if !refresh && let Some(environment) = Self::recorded(cache, mirror) {
            return Ok(environment);
        }
        let mirror = mirror::find(mirror)?;
        let (snapshot, id) = Snapshot::fetch(cache, &mirror)?;
        let kernels = stock::offered(&snapshot.backports()?);
        let record = Record {
            mirror,
            suite: SUITE.to_owned(),
            snapshot: id,
            kernels,
        };
        let json = serde_json::to_vec_pretty(&record).context("cannot encode the environment")?;
        cache::write_atomically(&cache.path(RECORD), &json)?;
        Ok(Self { record, snapshot })
    }

    fn recorded(cache: &'a Cache, mirror: Option<&str>) -> Option<Self> {
        let text = fs::read(cache.path(RECORD)).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        if mirror.is_some_and(|mirror| mirror.trim_end_matches('/') != record.mirror)
            || record.suite != SUITE
        {
            return None;
        }
        let snapshot = Snapshot::reopen(cache, &record.snapshot, &record.mirror)?;
        Some(Self { record, snapshot })
    }
}

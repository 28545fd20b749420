//! Maps for what is looked up for each of very many rows: with the standard hasher, which guards against keys that are
//! chosen to collide, most of a comparison's time goes there in an emulated machine.

use foldhash::fast::RandomState;
use std::collections::{HashMap, HashSet};

/// A map without that guard.
pub type Map<K, V> = HashMap<K, V, RandomState>;
/// A set without it.
pub type Set<K> = HashSet<K, RandomState>;

//! Rows of the kernel that come over netlink and are kept by a thread until they are asked for.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::packet::Identity;

/// One line of the kernel's TRACE, or one message of its trace of nftables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Inode number of the namespace.
    pub netns: u64,
    /// Number of the netfilter hook.
    pub hook: u8,
    /// `table:chain:kind:number`
    pub step: String,
    /// The packet at that moment.
    pub packet: Identity,
    /// Its mark.
    pub mark: u32,
}

/// What the thread has taken.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    rows: Mutex<Vec<Row>>,
    lost: AtomicU64,
    stop: AtomicBool,
}

impl Taken {
    pub(crate) fn add(&self, rows: impl IntoIterator<Item = Row>) {
        self.rows().extend(rows);
    }

    pub(crate) fn lose(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }

    fn rows(&self) -> MutexGuard<'_, Vec<Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens until dropped.
#[derive(Debug)]
pub struct Listener {
    taken: Arc<Taken>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Calls `take` whenever something may wait in the socket; it takes all that does.
    pub(crate) fn start<S>(socket: S, mut take: impl FnMut(&S, &Taken) + Send + 'static) -> Self
    where
        S: AsFd + Send + 'static,
    {
        let taken = Arc::new(Taken::default());
        let theirs = Arc::clone(&taken);
        let thread = thread::spawn(move || {
            let patience = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            while !theirs.stop.load(Ordering::Relaxed) {
                let _ = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&patience));
                take(&socket, &theirs);
            }
        });
        Self { taken, thread: Some(thread) }
    }

    /// What came since the last call.
    pub fn take(&self) -> Vec<Row> {
        std::mem::take(&mut *self.taken.rows())
    }

    /// How many rows wait.
    pub fn waiting(&self) -> usize {
        self.taken.rows().len()
    }

    /// How many never arrived, so far; of what is not numbered, how often some did not.
    pub fn lost(&self) -> u64 {
        self.taken.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.taken.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

//! Which model has which GPUs, and whose turn it is to choose some.
//!
//! A load that names its GPUs has them from the moment it is taken in, while it is still being downloaded.
//! A load that names none leaves the choice to its worker, and what the worker chose is heard with `Ready`.
//! So only one of these is between its start and `Ready` at a time; the others wait, as do loads that named
//! GPUs which that one may be about to choose. A model on the CPU waits for nobody and keeps nobody waiting.
//!
//! Owns: the reservations, and which model chooses. Must never: start a worker, or know more of a GPU than its number.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minisgl_proto::{Device, LoadOptions};
use tokio::sync::watch;

/// The table of one registry. Clones are the same table.
#[derive(Clone, Default)]
pub(crate) struct Placement(Arc<Inner>);

#[derive(Default)]
struct Inner {
    table: Mutex<Table>,
    /// Notified whenever a load that waits may go on.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Table {
    /// Names are the registry's, so none is here twice.
    entries: Vec<Entry>,
    /// The model that chooses.
    choosing: Option<String>,
}

struct Entry {
    name: String,
    wish: Wish,
    /// It said how much memory it takes, and so shares its GPUs with others.
    shares: bool,
    gpus: Vec<u32>,
    /// A worker of it started there: its GPUs are its own until the reservation ends.
    settled: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Runs on the CPU.
    None,
    /// These very GPUs.
    Given,
    /// Whichever its worker finds best.
    Any,
}

/// What a worker is to be told of GPUs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Go on these; empty: choose, but none of the `taken`.
    Now { gpus: Vec<u32>, taken: Vec<u32> },
    /// Not before this model has its GPUs.
    After(String),
}

/// Another model has the GPU.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "GPU {gpu} has model \"{by}\"; name other GPUs, unload \"{by}\" first, or share the GPU: say with \
     --kv-tokens or --memory-ratio how much of its memory this model takes"
)]
pub(crate) struct Taken {
    gpu: u32,
    by: String,
}

/// A model's GPUs, until it is dropped.
pub(crate) struct Reservation {
    placement: Placement,
    name: String,
    changes: watch::Receiver<()>,
}

impl Table {
    fn at(&mut self, name: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.name == name)
    }

    /// The first of `gpus` that another model has, of those that `counts`.
    fn conflict(
        &self,
        name: &str,
        gpus: &[u32],
        counts: impl Fn(&Entry) -> bool,
    ) -> Result<(), Taken> {
        let others = || self.entries.iter().filter(|other| other.name != name && counts(other));
        for &gpu in gpus {
            if let Some(other) = others().find(|other| other.gpus.contains(&gpu)) {
                return Err(Taken { gpu, by: other.name.clone() });
            }
        }
        Ok(())
    }

    fn taken_from(&self, name: &str) -> Vec<u32> {
        let others = self.entries.iter().filter(|other| other.name != name);
        let mut gpus: Vec<u32> = others.flat_map(|other| other.gpus.iter().copied()).collect();
        gpus.sort_unstable();
        gpus.dedup();
        gpus
    }
}

impl Placement {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reservation for a new model. `gpus_here` says whether `device = auto` may end on a GPU.
    ///
    /// # Errors
    /// It names a GPU that another model has, and does not share it.
    pub(crate) fn reserve(
        &self,
        name: &str,
        options: &LoadOptions,
        gpus_here: bool,
    ) -> Result<Reservation, Taken> {
        let wish = match options.device {
            Device::Cpu => Wish::None,
            _ if !options.gpus.is_empty() => Wish::Given,
            Device::Auto if !gpus_here => Wish::None,
            Device::Auto | Device::Cuda => Wish::Any,
        };
        let shares = options.states_memory();
        let mut table = self.lock();
        if !shares {
            table.conflict(name, &options.gpus, |_| true)?;
        }
        let (name, gpus) = (name.to_string(), options.gpus.clone());
        table.entries.push(Entry { name: name.clone(), wish, shares, gpus, settled: false });
        Ok(Reservation { placement: self.clone(), name, changes: self.0.changed.subscribe() })
    }

    /// The GPUs of a model: those it named, or was placed on.
    pub(crate) fn gpus_of(&self, name: &str) -> Vec<u32> {
        self.lock().at(name).map(|entry| entry.gpus.clone()).unwrap_or_default()
    }
}

impl Reservation {
    /// Asks whether a worker may start, and where. After [`Start::After`], ask again when
    /// [`Reservation::changed`] says so.
    ///
    /// # Errors
    /// While this model waited, another chose a GPU that it named.
    pub(crate) fn start(&mut self) -> Result<Start, Taken> {
        // First, so that a change from here on is not missed.
        self.changes.mark_unchanged();
        let mut table = self.placement.lock();
        let taken = table.taken_from(&self.name);
        let other = table.choosing.clone().filter(|other| *other != self.name);
        let Some(entry) = table.at(&self.name) else {
            return Ok(Start::Now { gpus: Vec::new(), taken });
        };
        let (wish, shares, gpus) = (entry.wish, entry.shares, entry.gpus.clone());
        if entry.settled && !gpus.is_empty() {
            return Ok(Start::Now { gpus, taken: Vec::new() });
        }
        match (wish, other) {
            (Wish::None, _) => {}
            (Wish::Given, Some(other)) if !shares => return Ok(Start::After(other)),
            (Wish::Given, _) => {
                if !shares {
                    // A model that shares its GPUs does not keep this one out.
                    table.conflict(&self.name, &gpus, |other| !other.shares)?;
                }
                if let Some(entry) = table.at(&self.name) {
                    entry.settled = true;
                }
            }
            (Wish::Any, Some(other)) => return Ok(Start::After(other)),
            (Wish::Any, None) => {
                table.choosing = Some(self.name.clone());
                let taken = if shares { Vec::new() } else { taken };
                return Ok(Start::Now { gpus: Vec::new(), taken });
            }
        }
        Ok(Start::Now { gpus, taken: Vec::new() })
    }

    /// Waits until asking again may bring another answer.
    pub(crate) async fn changed(&mut self) {
        // The sender is in the table, which this reservation keeps.
        let _ = self.changes.changed().await;
    }

    /// The worker is ready, and this is where it is.
    pub(crate) fn settle(&self, gpus: &[u32]) {
        self.stop_choosing(|table| {
            if let Some(entry) = table.at(&self.name) {
                entry.gpus = gpus.to_vec();
                entry.settled = true;
            }
        });
    }

    /// The worker is dead: the GPUs are kept for the next one; another model may choose.
    pub(crate) fn pause(&self) {
        self.stop_choosing(|_| ());
    }

    fn stop_choosing(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.placement.lock();
        if table.choosing.as_deref() == Some(&self.name) {
            table.choosing = None;
        }
        change(&mut table);
        drop(table);
        self.placement.0.changed.send_replace(());
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.stop_choosing(|table| table.entries.retain(|entry| entry.name != self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(gpus: &[u32], kv_tokens: Option<u64>) -> LoadOptions {
        LoadOptions { gpus: gpus.to_vec(), kv_tokens, ..LoadOptions::default() }
    }

    fn now(gpus: &[u32], taken: &[u32]) -> Result<Start, Taken> {
        Ok(Start::Now { gpus: gpus.to_vec(), taken: taken.to_vec() })
    }

    fn after(name: &str) -> Result<Start, Taken> {
        Ok(Start::After(name.to_string()))
    }

    fn taken(gpu: u32, by: &str) -> Taken {
        Taken { gpu, by: by.to_string() }
    }

    #[test]
    fn named_gpus_are_had_from_the_start_and_refused_to_others() {
        let placement = Placement::default();
        let mut a = placement.reserve("a", &options(&[2, 3], None), true).unwrap();
        assert_eq!(placement.gpus_of("a"), [2, 3]);
        let refused = placement.reserve("b", &options(&[1, 3], None), true).err();
        assert_eq!(refused, Some(taken(3, "a")));
        let text = taken(3, "a").to_string();
        for part in ["GPU 3", "\"a\"", "--kv-tokens", "--memory-ratio", "unload"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(placement.gpus_of("b").is_empty(), "a refused load leaves nothing behind");
        let mut b = placement.reserve("b", &options(&[0, 1], None), true).unwrap();
        assert_eq!((a.start(), b.start()), (now(&[2, 3], &[]), now(&[0, 1], &[])));
        drop(a);
        placement.reserve("c", &options(&[3], None), true).unwrap();
    }

    #[test]
    fn who_states_its_memory_shares_with_others() {
        let placement = Placement::default();
        let mut a = placement.reserve("a", &options(&[0], None), true).unwrap();
        let mut b = placement.reserve("b", &options(&[0], Some(64)), true).unwrap();
        let mut c = placement.reserve("c", &options(&[], Some(64)), true).unwrap();
        assert_eq!(b.start(), now(&[0], &[]));
        assert_eq!(c.start(), now(&[], &[]), "nothing is taken from it");
        c.settle(&[0]);
        assert_eq!(a.start(), now(&[0], &[]), "those who came to share do not drive it out");
        // It is the newcomer that has to share.
        assert!(placement.reserve("d", &options(&[0], None), true).is_err());
        let mut d = placement.reserve("d", &options(&[], None), true).unwrap();
        assert_eq!(d.start(), now(&[], &[0]));
    }

    #[test]
    fn one_chooses_at_a_time_and_the_next_sees_what_it_chose() {
        let placement = Placement::default();
        let mut a = placement.reserve("a", &options(&[], None), true).unwrap();
        let mut b = placement.reserve("b", &options(&[], None), true).unwrap();
        let mut c = placement.reserve("c", &options(&[], Some(64)), true).unwrap();
        assert_eq!(a.start(), now(&[], &[]));
        assert_eq!((b.start(), c.start()), (after("a"), after("a")));
        assert!(!b.changes.has_changed().unwrap());
        a.settle(&[1]);
        assert!(b.changes.has_changed().unwrap());
        assert_eq!(b.start(), now(&[], &[1]));
        b.pause();
        assert_eq!(c.start(), now(&[], &[]));
        drop(c);
        assert_eq!(b.start(), now(&[], &[1]));
        b.settle(&[0, 2]);
        assert_eq!((a.start(), b.start()), (now(&[1], &[]), now(&[0, 2], &[])), "a restart");
        drop(b);
        assert!(placement.gpus_of("b").is_empty());
        placement.reserve("d", &options(&[0], None), true).unwrap();
    }

    #[test]
    fn named_gpus_wait_for_who_may_be_choosing_them() {
        let placement = Placement::default();
        let mut a = placement.reserve("a", &options(&[], None), true).unwrap();
        assert_eq!(a.start(), now(&[], &[]));
        let mut b = placement.reserve("b", &options(&[0], None), true).unwrap();
        let mut c = placement.reserve("c", &options(&[1], None), true).unwrap();
        let mut shares = placement.reserve("shares", &options(&[0], Some(64)), true).unwrap();
        assert_eq!((b.start(), c.start()), (after("a"), after("a")));
        assert_eq!(shares.start(), now(&[0], &[]), "it need not wait");
        a.settle(&[0]);
        assert_eq!((b.start(), c.start()), (Err(taken(0, "a")), now(&[1], &[])));
    }

    #[test]
    fn the_cpu_is_nobodys_business() {
        let placement = Placement::default();
        let cpu = LoadOptions { device: Device::Cpu, ..LoadOptions::default() };
        let mut a = placement.reserve("a", &options(&[], None), true).unwrap();
        let mut b = placement.reserve("b", &cpu, true).unwrap();
        assert_eq!((a.start(), b.start()), (now(&[], &[]), now(&[], &[])));
        let mut c = placement.reserve("c", &options(&[], None), false).unwrap();
        assert_eq!(c.start(), now(&[], &[]), "there is no GPU for it to choose");
        let cuda = LoadOptions { device: Device::Cuda, ..LoadOptions::default() };
        let mut d = placement.reserve("d", &cuda, false).unwrap();
        assert_eq!(d.start(), after("a"));
    }
}

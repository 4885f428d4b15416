//! Whether a process could start, and whether it can serve just now, each in one line that
//! `/healthz` and `/readyz` repeat.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared between the process, which changes it, and the admin page, which reads it.
/// Healthy exactly when no reason speaks against it; ready when no part of it has one either.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

/// A part of a process that can be unready by itself: a shard, a link, a child.
#[derive(Debug)]
pub struct Part {
    shown: Arc<Mutex<Reason>>,
    reason: Reason,
}

type Reason = Option<&'static str>;

#[derive(Debug)]
struct State {
    reason: Option<String>,
    parts: BTreeMap<String, Arc<Mutex<Reason>>>,
}

impl Health {
    /// Not healthy yet: `starting`.
    pub fn starting() -> Health {
        let state = State { reason: Some("starting".to_owned()), parts: BTreeMap::new() };
        Health { state: Arc::new(Mutex::new(state)) }
    }

    /// From now on `/healthz` answers 200 `ok`.
    pub fn set_ok(&self) {
        self.lock().reason = None;
    }

    /// From now on `/healthz` answers 503 with `reason`, one line.
    pub fn set_failing(&self, reason: impl Into<String>) {
        self.lock().reason = Some(reason.into());
    }

    /// Why the process cannot serve at all; `None`: it can.
    pub fn reason(&self) -> Option<String> {
        self.lock().reason.clone()
    }

    /// A new part, ready until it says otherwise. `name` may be empty for all of the process. What
    /// an earlier part of that name says from now on is not heard.
    pub fn part(&self, name: impl Into<String>) -> Part {
        let shown = Arc::default();
        self.lock().parts.insert(name.into(), Arc::clone(&shown));
        Part { shown, reason: None }
    }

    /// Why nothing should be sent here just now; `None`: it is ready.
    pub fn unready(&self) -> Option<String> {
        let state = self.lock();
        if state.reason.is_some() {
            return state.reason.clone();
        }
        let found = state.parts.iter().find_map(|(name, shown)| Some((name, (*lock(shown))?)));
        found.map(|(name, reason)| match name.as_str() {
            "" => reason.to_owned(),
            name => format!("{name}: {reason}"),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Part {
    /// `None`: ready. Cheap while nothing changes, so that a loop may say it every turn.
    pub fn set(&mut self, reason: Option<&'static str>) {
        if self.reason != reason {
            self.reason = reason;
            *lock(&self.shown) = reason;
        }
    }
}

/// A thread that panicked while it held a lock left a whole value behind: each change is one store.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

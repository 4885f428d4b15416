//! Whether a process can serve, in one word that `/healthz` repeats.

use std::sync::{Arc, Mutex, PoisonError};

/// Shared between the process, which changes it, and the admin page, which reads it.
/// Healthy exactly when no reason speaks against it.
#[derive(Clone, Debug)]
pub struct Health {
    reason: Arc<Mutex<Option<String>>>,
}

impl Health {
    /// Not healthy yet: `starting`.
    pub fn starting() -> Health {
        let reason = Some("starting".to_owned());
        Health { reason: Arc::new(Mutex::new(reason)) }
    }

    /// From now on `/healthz` answers 200 `ok`.
    pub fn set_ok(&self) {
        self.set(None);
    }

    /// From now on `/healthz` answers 503 with `reason`, one line.
    pub fn set_failing(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    /// Why the process cannot serve; `None`: it can.
    pub fn reason(&self) -> Option<String> {
        self.lock().clone()
    }

    fn set(&self, reason: Option<String>) {
        *self.lock() = reason;
    }

    /// A thread that panicked while it held the lock left a whole value behind: it is one store.
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Ctrl-C as an error that every wait returns.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::{Condvar, Mutex};

/// The user asked to stop; whoever gets this unwinds, and destructors clean up.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Whether SIGINT or SIGTERM has come.
#[derive(Debug, Default)]
pub(crate) struct Interrupt {
    came: Mutex<bool>,
    changed: Condvar,
}

impl Interrupt {
    /// Starts to listen for SIGINT and SIGTERM. A second signal ends the process at once.
    ///
    /// # Errors
    /// The listening thread could not be started.
    pub(crate) fn listen() -> anyhow::Result<Arc<Self>> {
        let interrupt = Arc::new(Self::default());
        let heard = Arc::clone(&interrupt);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime for signals")?;
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(heard.collect()))
            .context("start the thread for signals")?;
        Ok(interrupt)
    }

    async fn collect(&self) {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut int), Ok(mut term)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        for times in 1.. {
            tokio::select! {
                _ = int.recv() => (),
                _ = term.recv() => (),
            }
            if times > 1 {
                std::process::exit(130);
            }
            *self.came.lock() = true;
            self.changed.notify_all();
        }
    }

    /// `Err` once a signal has come.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        if *self.came.lock() { Err(Interrupted) } else { Ok(()) }
    }

    /// Waits, but not longer than until a signal comes.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub(crate) fn wait(&self, time: Duration) -> Result<(), Interrupted> {
        let mut came = self.came.lock();
        self.changed.wait_while_for(&mut came, |came| !*came, time);
        if *came { Err(Interrupted) } else { Ok(()) }
    }
}

//! Looks after what is the controller's own: its directory and socket, which are made anew where somebody has deleted them, and its memory.

use crate::api::socket;
use crate::control::Command;
use crate::host::runtime::Home;
use crate::host::{chain, heap};
use crate::model::event::News;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

pub struct Keeper {
    pub home: Arc<Home>,
    pub socket: PathBuf,
    /// Takes a socket to listen at from now on.
    pub fresh: mpsc::Sender<UnixListener>,
    pub commands: mpsc::Sender<Command>,
    /// What could not be done, as it was said last: it is said once.
    pub said: Option<String>,
}

impl Keeper {
    /// Looks as often as the controller looks at everything. Never ends.
    pub async fn run(mut self, every: Duration) {
        let mut resync = interval_at(Instant::now() + every, every);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            resync.tick().await;
            heap::give_back();
            let looked = self.look().await;
            if let Some(error) = looked.as_ref().err().filter(|error| self.said.as_ref() != Some(*error)) {
                tracing::error!(error, "cannot put the controller's own directory right; it is tried again");
            }
            self.said = looked.err();
        }
    }

    async fn look(&self) -> Result<(), String> {
        if !self.home.is_whole() {
            let home = Arc::clone(&self.home);
            let made = spawn_blocking(move || home.take_again()).await.map_err(|error| error.to_string())?;
            made.map_err(|error| chain(&error))?;
            let path = self.home.path().display();
            let message = format!(
                "the runtime directory {path} was deleted and is made anew; what ran goes on, with an empty /dev until its next start"
            );
            let help = "keep whatever cleans up there off it; end a workload's command to have its /dev back";
            tracing::warn!(help, "{message}");
            self.tell("RuntimeDirectoryGone", message).await;
        }
        // Of something else that lies there, the next controller tells.
        if matches!(fs::symlink_metadata(&self.socket), Err(error) if error.kind() == io::ErrorKind::NotFound) {
            let listener = socket::listen(&self.socket).map_err(|error| error.to_string())?;
            let message = format!("the socket {} was deleted and is made anew", self.socket.display());
            tracing::warn!("{message}");
            // The API may have ended with the controller.
            let _ = self.fresh.send(listener).await;
            self.tell("SocketGone", message).await;
        }
        Ok(())
    }

    async fn tell(&self, reason: &'static str, message: String) {
        // The loop may have ended; then nobody is left to be told.
        let _ = self.commands.send(Command::Mended { news: News::of_host(reason, message) }).await;
    }
}

//! Places for work that blocks a thread: so many at a time, and more for what hangs, so that it does not keep the rest from its turn.
//!
//! Problem: a file system, a socket or a device may not answer for hours, and the thread that asked cannot be called off. With one bounded
//! set of places, as many that hang as there are places hold up everything. Approach: work that takes longer than it should moves to a
//! place among those that hang, and the place it had is the next one's. Guarantee: at most [`Bounds::prompt`] and [`Bounds::hung`] threads;
//! what does not hang waits for what hangs only once all of the latter's places are taken.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{self, JoinError};
use tokio::time::timeout;

/// How many at a time, and how long is too long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub prompt: usize,
    pub hung: usize,
    /// What takes longer than this is taken to hang.
    pub patience: Duration,
}

/// What is expected of a piece of work, by how it went the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Prompt,
    Hung,
}

/// The places; clones share them.
#[derive(Clone, Debug)]
pub struct Places {
    bounds: Bounds,
    prompt: Arc<Semaphore>,
    hung: Arc<Semaphore>,
}

impl Places {
    pub fn new(bounds: Bounds) -> Places {
        let places = |number| Arc::new(Semaphore::new(number));
        Places { bounds, prompt: places(bounds.prompt), hung: places(bounds.hung) }
    }

    /// A place, once there is one.
    pub async fn place(&self, pace: Pace) -> Place {
        let places = match pace {
            Pace::Prompt => &self.prompt,
            Pace::Hung => &self.hung,
        };
        // Only a semaphore that is closed answers none, and these never are.
        Place { pace, permit: Arc::clone(places).acquire_owned().await.ok() }
    }

    /// Does the work on a thread, and says how it went. The place is kept until the thread is done with it, wherever that is by then. Not
    /// to be dropped before: the thread would go on without one.
    pub async fn run<T: Send + 'static>(
        &self,
        place: Place,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> (Pace, Result<T, JoinError>) {
        let mut thread = task::spawn_blocking(work);
        if let Ok(done) = timeout(self.bounds.patience, &mut thread).await {
            return (Pace::Prompt, done);
        }
        let Place { pace, permit } = place;
        let mut kept = permit;
        if pace == Pace::Prompt {
            // Neither loses anything to the other: the thread is only looked at, a permit that is not had is not taken.
            tokio::select! {
                done = &mut thread => return (Pace::Hung, done),
                moved = Arc::clone(&self.hung).acquire_owned() => kept = moved.ok(),
            }
        }
        let done = thread.await;
        drop(kept);
        (Pace::Hung, done)
    }

    /// Waits until nothing is being done. What hangs may never be over, what is only slow is worth waiting for: the caller has the bound.
    pub async fn rest(&self) {
        let all = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let _ = self.prompt.acquire_many(all(self.bounds.prompt)).await;
        let _ = self.hung.acquire_many(all(self.bounds.hung)).await;
    }
}

/// A place that is held.
#[derive(Debug)]
pub struct Place {
    pace: Pace,
    permit: Option<OwnedSemaphorePermit>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    const BOUNDS: Bounds = Bounds { prompt: 2, hung: 3, patience: Duration::from_millis(20) };

    fn hang(places: &Places, pace: Pace) -> (Sender<()>, task::JoinHandle<Pace>) {
        let (release, released): (Sender<()>, Receiver<()>) = channel();
        let places = places.clone();
        let hung = task::spawn(async move {
            let held = places.place(pace).await;
            places.run(held, move || released.recv()).await.0
        });
        (release, hung)
    }

    async fn ask(places: &Places) -> Pace {
        let place = places.place(Pace::Prompt).await;
        places.run(place, || ()).await.0
    }

    #[tokio::test]
    async fn what_hangs_moves_away_and_leaves_its_place_to_others() {
        let places = Places::new(BOUNDS);
        // One more than there are places of either kind alone.
        let hung: Vec<_> = (0..4).map(|_| hang(&places, Pace::Prompt)).collect();
        let begun = Instant::now();
        for _ in 0..3 {
            ask(&places).await;
        }
        assert!(timeout(BOUNDS.patience, places.rest()).await.is_err(), "what is slow is not over");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        // On a busy machine the last of them may have got its place only now.
        tokio::time::sleep(10 * BOUNDS.patience).await;
        for (release, hung) in hung {
            drop(release);
            assert_eq!(hung.await.unwrap(), Pace::Hung);
        }
        assert_eq!((places.prompt.available_permits(), places.hung.available_permits()), (2, 3));
    }

    #[tokio::test]
    async fn threads_are_bounded_and_what_hung_before_waits_among_its_own() {
        let places = Places::new(BOUNDS);
        let hung: Vec<_> = (0..9).map(|_| hang(&places, Pace::Hung)).collect();
        while places.hung.available_permits() > 0 {
            task::yield_now().await;
        }
        ask(&places).await;
        let more: Vec<_> = (0..2).map(|_| hang(&places, Pace::Prompt)).collect();
        while places.prompt.available_permits() > 0 {
            task::yield_now().await;
        }
        let late = timeout(Duration::from_millis(200), ask(&places)).await;
        assert!(late.is_err(), "a place that is taken was given twice");
        for (release, hung) in more.into_iter().chain(hung) {
            drop(release);
            hung.await.unwrap();
        }
        ask(&places).await;
    }
}

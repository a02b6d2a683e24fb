//! A provider whose driver may not answer.
//!
//! Problem: a device that is sick may keep its driver from answering for hours, in a call that nothing calls off, and with it whoever asked.
//! Approach: it is asked on a thread of its own, and waited for a moment only. While a question is out no other is asked; an answer that
//! comes late is thrown away, and the next look asks anew.
//! Guarantees: who looks waits at most [`WAIT`], and not at all while an earlier question is out; one thread a provider, asleep in between.

use super::{Gpu, Provider, ProviderError};
use crate::model::time::Timestamp;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Waking eight large devices that nobody uses takes a driver some seconds.
const WAIT: Duration = Duration::from_secs(10);

pub struct Patient {
    provider: Arc<dyn Provider>,
    asked: Mutex<Option<Asked>>,
}

/// The thread that asks.
struct Asked {
    questions: SyncSender<()>,
    answers: Receiver<Answer>,
    /// When the question was asked that is still out.
    out_since: Option<Timestamp>,
}

type Answer = Result<Vec<Gpu>, ProviderError>;

impl Patient {
    pub fn of(provider: impl Provider + 'static) -> Patient {
        Patient { provider: Arc::new(provider), asked: Mutex::default() }
    }

    fn ask(&self, wait: Duration) -> Answer {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = |since| ProviderError::Silent { provider: self.name(), since };
        let out_since = asked.as_ref().and_then(|asked| asked.out_since);
        if let (Some(since), Some(thread)) = (out_since, asked.as_mut()) {
            match thread.answers.try_recv() {
                Ok(_) => thread.out_since = None,
                Err(TryRecvError::Empty) => return Err(silent(since)),
                Err(TryRecvError::Disconnected) => *asked = None,
            }
        }
        let thread = match asked.take() {
            Some(thread) => thread,
            None => self.begin()?,
        };
        let thread = asked.insert(thread);
        let answer = match thread.questions.send(()) {
            Ok(()) => thread.answers.recv_timeout(wait),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        match answer {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let since = Timestamp::default().plus(now).minus(wait);
                thread.out_since = Some(since);
                Err(silent(since))
            }
            Err(RecvTimeoutError::Disconnected) => {
                *asked = None;
                Err(ProviderError::Panicked { provider: self.name() })
            }
        }
    }

    fn begin(&self) -> Result<Asked, ProviderError> {
        // Room for one of each: neither side waits for the other to take it.
        let (questions, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let provider = Arc::clone(&self.provider);
        let asks = move || {
            while asked.recv().is_ok() && answer.send(provider.devices()).is_ok() {}
        };
        let named = thread::Builder::new().name(self.name().to_owned());
        named
            .spawn(asks)
            .map_err(|source| ProviderError::Thread { provider: self.name(), message: source.to_string() })?;
        Ok(Asked { questions, answers, out_since: None })
    }
}

impl Provider for Patient {
    fn name(&self) -> &'static str {
        self.provider.name()
    }

    fn devices(&self) -> Answer {
        self.ask(WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Answers once the test says so.
    struct Slow(Mutex<Receiver<()>>);

    impl Provider for Slow {
        fn name(&self) -> &'static str {
            "slow"
        }

        fn devices(&self) -> Answer {
            self.0.lock().unwrap().recv().expect("a bug");
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_driver_that_does_not_answer_is_waited_for_once_and_asked_again_when_it_is_back() {
        let (lets, may) = sync_channel(9);
        let slow = Patient::of(Slow(Mutex::new(may)));
        let moment = Duration::from_millis(20);
        let Err(ProviderError::Silent { since, .. }) = slow.ask(moment) else { panic!("it has answered") };
        let begun = Instant::now();
        let again = slow.ask(Duration::from_mins(10));
        assert_eq!(again, Err(ProviderError::Silent { provider: "slow", since }), "the same moment each time");
        assert!(begun.elapsed() < Duration::from_mins(1));
        // The late answer, and that to the next question.
        lets.send(()).unwrap();
        lets.send(()).unwrap();
        while slow.ask(Duration::from_mins(1)) != Ok(Vec::new()) {
            thread::sleep(Duration::from_millis(1));
        }
        drop(lets);
        assert_eq!(slow.ask(Duration::from_mins(1)), Err(ProviderError::Panicked { provider: "slow" }));
    }
}

//! Who has asked for a look at the folder, and which look answers them.
//!
//! A look that is under way may have read past what was changed a moment ago: it answers nobody who asks after it has begun, only the one
//! after it does. A folder that does not answer keeps nobody waiting: they are told how things stand.

use tokio::sync::oneshot;

type Asker = oneshot::Sender<()>;

/// Those who wait for a look.
#[derive(Debug, Default)]
pub struct Lookers {
    /// For the one that is to come.
    waiting: Vec<Asker>,
    /// For the one that is under way.
    looked_for: Vec<Asker>,
    /// For the pass that follows it.
    answerable: Vec<Asker>,
}

impl Lookers {
    pub fn ask(&mut self, asker: Asker) {
        self.waiting.push(asker);
    }

    /// A look begins.
    pub fn begin(&mut self) {
        self.looked_for.append(&mut self.waiting);
    }

    /// The look is over.
    pub fn end(&mut self) {
        self.answerable.append(&mut self.looked_for);
    }

    /// Nobody knows whether there will be another one.
    pub fn give_up(&mut self) {
        self.answerable.append(&mut self.looked_for);
        self.answerable.append(&mut self.waiting);
    }

    /// The pass is over that follows what was looked at.
    pub fn answer(&mut self) {
        for asker in self.answerable.drain(..) {
            // Whoever asked may have gone.
            let _ = asker.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot::Receiver;

    fn ask(lookers: &mut Lookers) -> Receiver<()> {
        let (asker, answer) = oneshot::channel();
        lookers.ask(asker);
        answer
    }

    #[test]
    fn a_look_answers_those_who_asked_before_it_began_and_no_others() {
        let mut lookers = Lookers::default();
        let mut first = ask(&mut lookers);
        lookers.begin();
        let mut second = ask(&mut lookers);
        lookers.answer();
        assert!(first.try_recv().is_err(), "a pass while it is under way answers nobody");
        lookers.end();
        lookers.answer();
        assert!(first.try_recv().is_ok());
        assert!(second.try_recv().is_err(), "it was asked for while that one was under way");
        lookers.begin();
        lookers.end();
        assert!(second.try_recv().is_err(), "the pass is yet to come");
        lookers.answer();
        assert!(second.try_recv().is_ok());
    }

    #[test]
    fn a_folder_that_does_not_answer_keeps_nobody_waiting() {
        let mut lookers = Lookers::default();
        let mut first = ask(&mut lookers);
        lookers.begin();
        let mut second = ask(&mut lookers);
        lookers.give_up();
        lookers.answer();
        assert!(first.try_recv().is_ok() && second.try_recv().is_ok());
    }
}

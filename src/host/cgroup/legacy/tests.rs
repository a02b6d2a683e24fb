//! Moving everything that runs.

use super::*;
use std::cell::RefCell;

#[test]
fn what_was_forked_while_others_were_moved_is_moved_too() {
    // 7 forks 8 before its turn; 9 is born where 8 has been moved to, and listed all the same.
    let (rounds, moved) = (RefCell::new(vec![vec![1, 7, 8, 9], vec![1, 7, 8], vec![1, 7]]), RefCell::new(Vec::new()));
    let list = || Ok(rounds.borrow_mut().pop().unwrap_or(vec![1, 7, 8, 9]));
    let put = |pid| {
        moved.borrow_mut().push(pid);
        Ok(())
    };
    move_all(list, put).unwrap();
    assert_eq!(*moved.borrow(), [1, 7, 8, 9]);
}

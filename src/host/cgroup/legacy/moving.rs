//! Moving everything that runs into a hierarchy that it has not joined so far.

use crate::host::cgroup::CgroupError;
use std::collections::BTreeSet;

/// Times it is looked for processes that were forked while the others were moved. Each round leaves only children of those not yet moved.
const MOVE_ROUNDS_MAX: usize = 16;

/// Moves everything there is. A process that forks before its turn leaves a child behind, so it is looked again until nobody is new: a child
/// of one that was moved is born where it is.
pub fn move_all(
    list: impl Fn() -> Result<Vec<u32>, CgroupError>,
    put: impl Fn(u32) -> Result<(), CgroupError>,
) -> Result<(), CgroupError> {
    let mut moved = BTreeSet::new();
    for _ in 0..MOVE_ROUNDS_MAX {
        let new: Vec<u32> = list()?.into_iter().filter(|pid| !moved.contains(pid)).collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            put(pid)?;
            moved.insert(pid);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn what_was_forked_while_others_were_moved_is_moved_too() {
        // 7 forks 8 before its turn; 9 is born where 8 has been moved to, and listed all the same.
        let (rounds, moved) =
            (RefCell::new(vec![vec![1, 7, 8, 9], vec![1, 7, 8], vec![1, 7]]), RefCell::new(Vec::new()));
        let list = || Ok(rounds.borrow_mut().pop().unwrap_or(vec![1, 7, 8, 9]));
        let put = |pid| {
            moved.borrow_mut().push(pid);
            Ok(())
        };
        move_all(list, put).unwrap();
        assert_eq!(*moved.borrow(), [1, 7, 8, 9]);
    }
}

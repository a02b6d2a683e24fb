//! Nodes that are full as a whole.

use super::*;

/// Two caches of one node, so many thousandths on each workload of the second, and nothing on the other node. Nobody's memory may be far.
fn full_node(second: u32) -> Bench {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let members = names.into_iter().enumerate().map(|(at, name)| {
        let (cpus, usage) = match at {
            0..4 => ("0-1,8-9", 300),
            4..8 => ("0-1,8-9", 650),
            _ => ("2-3,10-11", second),
        };
        (name, Member { resident: None, ..member(CpuClass::Shared, cpus, usage) })
    });
    Bench::new(two_sockets(), members)
}

#[test]
fn what_hardly_stands_out_of_its_full_node_is_not_moved_about_within_it() {
    // 95 % beside 80 %, where the machine's mean is 44 %.
    let mut bench = full_node(800);
    assert_eq!(bench.run(100), [""; 0]);
    assert_eq!(bench.tick().advice[0].reason, AdviceReason::Imbalanced);
    let moves = full_node(600).run(100);
    assert!(!moves.is_empty() && moves.iter().all(|made| made.contains("0-1,8-9 to 2-3,10-11")), "{moves:?}");
}

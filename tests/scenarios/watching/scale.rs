//! A thousand files, every second of them broken: the good ones do not wait.

use super::{SOON, running, soon, watching, within};
use std::fs;
use std::time::Instant;

const FILES: u32 = 1000;
/// Of the good ones, those that run: a process each. The others only have to be accepted.
const RUNNING: u32 = 12;

#[test]
fn of_a_thousand_files_every_second_broken_the_good_ones_run() {
    let world = watching();
    let aside = world.path("aside.d");
    fs::create_dir(&aside).unwrap();
    let broken = ["command: [", "", "comand: x\n", "command: x\ncpu: -1\n", "hosts: {a b: c}\ncommand: x\n"];
    for n in 0..FILES {
        let text = match (n % 2, n / 2) {
            (1, index) => broken[index as usize % broken.len()].to_owned(),
            (_, index) if index < RUNNING => "command: sleep infinity\n".to_owned(),
            _ => "command: sleep infinity\nsuspend: true\n".to_owned(),
        };
        fs::write(aside.join(format!("w{n:04}.yaml")), text).unwrap();
    }
    let begun = Instant::now();
    super::tool("sh", &["-c", &format!("mv {}/* .", aside.display())], &world.manifests());
    let good = (FILES / 2) as usize;
    within(&world, 3 * SOON, "the good ones of a thousand files", || {
        running(&world).len() == RUNNING as usize && world.ps().len() == good
    });
    println!("with moving the files: {:?}", begun.elapsed());
    let before = running(&world);
    // One more good one among all that is refused.
    world.put("late.yaml", "command: sleep infinity\n");
    soon(&world, "one more", || world.status("late")["phase"] == "Running");
    let after = running(&world);
    assert!(before.iter().all(|(name, run)| after[name] == *run));
    let refused = world.log().lines().filter(|line| line.contains("manifest refused")).count();
    assert!(refused >= good, "{refused} refusals were told");
}

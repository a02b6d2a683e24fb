//! What holds of every provider, whoever's devices they are: one suite, three rigs. No such hardware is needed: AMD's files lie in a
//! folder, NVML's answers in `tests/fixtures/nvml` (made up in the shape its documentation gives; no device was there to record one).

mod cdi;

use super::amd::Amd;
use super::nvml::{Answer, Library, Nvml, Reading};
use super::simulated::Clocked;
use super::*;
use crate::model::gpu::{GpuId, Vendor};
use crate::model::units::Bytes;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

const TWO: &str = include_str!("../../../tests/fixtures/nvml/two-devices.json");
const MIG: &str = include_str!("../../../tests/fixtures/nvml/mig.json");

/// A machine of two devices, on which things can be made to happen.
trait Rig {
    fn provider(&self) -> Box<dyn Provider>;
    /// Makes it answer nothing sensible.
    fn break_it(&self);
    fn uses(&self, device: usize, bytes: u64);
    fn fails(&self, device: usize);
    fn is_there(&self, device: usize, there: bool);
}

/// What every provider promises.
fn conforms(rig: &dyn Rig) {
    let gpus = Gpus::of(vec![rig.provider()], vec![]);
    let first = gpus.read().0;
    assert_eq!(first.len(), 2, "{first:#?}");
    assert_eq!(first, gpus.read().0, "a look changes nothing");
    let ids: Vec<GpuId> = first.iter().map(|gpu| gpu.id.clone()).collect();
    assert_ne!(ids[0], ids[1]);
    for gpu in &first {
        assert!(gpu.memory.0 > 1 << 30 && gpu.foreign.0 < 1 << 20, "{gpu:#?}");
        assert!(gpu.fault.is_none() && !gpu.model.is_empty(), "{gpu:#?}");
        assert!(gpu.exposure.nodes.keys().all(|path| path.starts_with("/dev/")), "{gpu:#?}");
        assert_eq!(gpu.exposure.unhonoured, [""; 0], "{gpu:#?}");
    }
    assert_ne!(first[0].exposure.nodes, first[1].exposure.nodes, "a device without a node of its own");
    rig.uses(1, 5 << 30);
    let used: Vec<u64> = gpus.read().0.iter().map(|gpu| gpu.foreign.0 >> 30).collect();
    assert_eq!(used, [0, 5]);
    rig.fails(0);
    let faults: Vec<bool> = gpus.read().0.iter().map(|gpu| gpu.fault.is_some()).collect();
    assert_eq!(faults, [true, false]);
    rig.is_there(0, false);
    let left: Vec<GpuId> = gpus.read().0.into_iter().map(|gpu| gpu.id).collect();
    assert_eq!(left, ids[1..]);
    rig.is_there(0, true);
    let back: Vec<GpuId> = gpus.read().0.into_iter().map(|gpu| gpu.id).collect();
    assert_eq!(back, ids, "it comes back as the same device");
    // A driver that cannot say is no driver without devices.
    rig.break_it();
    let kept = gpus.read().0;
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().all(|gpu| gpu.fault.is_some()), "{kept:#?}");
}

struct Inventory(tempfile::TempDir);

impl Inventory {
    fn path(&self) -> PathBuf {
        self.0.path().join("gpus.yaml")
    }

    fn add(&self, event: &str) {
        let text = fs::read_to_string(self.path()).unwrap();
        fs::write(self.path(), format!("{text}- {{at: 0s, {event}}}\n")).unwrap();
    }
}

impl Rig for Inventory {
    fn provider(&self) -> Box<dyn Provider> {
        Box::new(Clocked::new(self.path().to_str().unwrap().parse().unwrap()))
    }

    fn break_it(&self) {
        fs::write(self.path(), "devices: 7").unwrap();
    }

    fn uses(&self, device: usize, bytes: u64) {
        self.add(&format!("device: GPU-{device}, usedByOthers: \"{bytes}\""));
    }

    fn fails(&self, device: usize) {
        self.add(&format!("device: GPU-{device}, fault: fell off the bus"));
    }

    fn is_there(&self, device: usize, there: bool) {
        self.add(&format!("device: GPU-{device}, present: {there}"));
        self.add(&format!("device: GPU-{device}, recovered: true"));
    }
}

#[test]
fn simulated_devices_conform() {
    let rig = Inventory(tempfile::tempdir().unwrap());
    let devices =
        "devices:\n- {id: GPU-0, memory: 16Gi, deviceNodes: [/dev/zero]}\n- {id: GPU-1, memory: 80Gi}\nevents:\n";
    fs::write(rig.path(), format!("{devices}- {{at: 1h, device: GPU-0, fault: later}}\n")).unwrap();
    conforms(&rig);
}

/// A folder as the amdgpu driver fills it.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Tree {
        let tree = Tree(tempfile::tempdir().unwrap());
        for (device, bus) in ["0000:03:00.0", "0000:83:00.0"].into_iter().enumerate() {
            let folder = tree.pci(device);
            fs::create_dir_all(&folder).unwrap();
            let files = [
                ("vendor", "0x1002\n".to_owned()),
                ("unique_id", format!("{device}f00d\n")),
                ("product_name", "AMD Instinct MI210\n".to_owned()),
                ("mem_info_vram_total", format!("{}\n", 64u64 << 30)),
                ("mem_info_vram_used", "0\n".to_owned()),
                ("numa_node", format!("{device}\n")),
            ];
            for (name, text) in files {
                fs::write(folder.join(name), text).unwrap();
            }
            assert!(folder.ends_with(bus));
            tree.is_there(device, true);
        }
        // Somebody else's, and one that only shows pictures.
        let other = tree.0.path().join("sys/class/drm/renderD127/device");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("vendor"), "0x8086\n").unwrap();
        fs::create_dir_all(tree.0.path().join("sys/class/drm/card0")).unwrap();
        fs::create_dir_all(tree.0.path().join("dev/dri")).unwrap();
        for node in ["kfd", "dri/renderD128", "dri/renderD129"] {
            fs::write(tree.0.path().join("dev").join(node), "").unwrap();
        }
        tree
    }

    fn pci(&self, device: usize) -> PathBuf {
        let bus = ["pci0000:00/0000:00:01.0/0000:03:00.0", "pci0000:80/0000:80:01.0/0000:83:00.0"][device];
        self.0.path().join("sys/devices").join(bus)
    }
}

impl Rig for Tree {
    fn provider(&self) -> Box<dyn Provider> {
        Box::new(Amd { root: self.0.path().to_owned() })
    }

    fn break_it(&self) {
        let drm = self.0.path().join("sys/class/drm");
        fs::remove_dir_all(&drm).unwrap();
        fs::write(drm, "").unwrap();
    }

    fn uses(&self, device: usize, bytes: u64) {
        fs::write(self.pci(device).join("mem_info_vram_used"), format!("{bytes}\n")).unwrap();
    }

    fn fails(&self, device: usize) {
        fs::remove_file(self.pci(device).join("mem_info_vram_used")).unwrap();
    }

    fn is_there(&self, device: usize, there: bool) {
        let node = self.0.path().join(format!("sys/class/drm/renderD{}", 128 + device));
        if there {
            fs::create_dir_all(&node).unwrap();
            symlink(self.pci(device), node.join("device")).unwrap();
        } else {
            fs::remove_dir_all(node).unwrap();
        }
    }
}

#[test]
fn amd_devices_conform() {
    let tree = Tree::new();
    let gpu = tree.provider().devices().unwrap().remove(0);
    // As ROCm names it, with the way over PCI that tells who is close.
    assert_eq!((gpu.id.0.as_str(), gpu.node), ("GPU-000000000000f00d", Some(0)));
    assert_eq!(gpu.bus, ["pci0000:00", "0000:00:01.0", "0000:03:00.0"]);
    let nodes: Vec<&str> = gpu.exposure.nodes.keys().map(String::as_str).collect();
    assert_eq!(nodes, ["/dev/dri/renderD128", "/dev/kfd"]);
    conforms(&tree);
}

#[test]
fn amd_devices_without_an_identity_are_told_apart_by_their_place() {
    let tree = Tree::new();
    fs::remove_file(tree.pci(0).join("unique_id")).unwrap();
    fs::write(tree.pci(1).join("unique_id"), "0\n").unwrap();
    fs::remove_file(tree.0.path().join("dev/kfd")).unwrap();
    let gpus = tree.provider().devices().unwrap();
    assert_eq!([gpus[0].id.0.as_str(), gpus[1].id.0.as_str()], ["PCI-0000:03:00.0", "PCI-0000:83:00.0"]);
    let said = gpus[0].exposure.unhonoured.join("; ");
    assert!(said.contains("ROCR_VISIBLE_DEVICES cannot name it") && said.contains("/dev/kfd is not there"), "{said}");
}

/// A library that says what a transcript has.
#[derive(Clone)]
struct Transcript(Arc<Mutex<Result<Answers, ProviderError>>>);

/// What is told of each device, and whether it is there.
type Answers = Vec<(Reading, bool)>;

impl Transcript {
    fn of(text: &str) -> Transcript {
        let readings: Vec<Reading> = serde_json::from_str(text).unwrap();
        Transcript(Arc::new(Mutex::new(Ok(readings.into_iter().map(|reading| (reading, true)).collect()))))
    }

    fn change(&self, device: usize, change: impl FnOnce(&mut (Reading, bool))) {
        change(&mut self.0.lock().unwrap().as_mut().unwrap()[device]);
    }
}

impl Library for Transcript {
    fn devices(&self) -> Result<Answer, ProviderError> {
        let readings = self.0.lock().unwrap().clone()?;
        let readings = readings.into_iter().filter(|(_, there)| *there).map(|(reading, _)| reading);
        let (readings, unread): (Vec<Reading>, Vec<Reading>) = readings.partition(|reading| !reading.name.is_empty());
        // One without a name is one that cannot be read.
        let failed = |_| ProviderError::Nvml { call: "device 0: nvmlDeviceGetUUID".into(), message: "sick".into() };
        Ok(Answer { readings, unread: unread.into_iter().map(failed).collect() })
    }

    fn errors(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

struct Nvidia {
    transcript: Transcript,
    root: tempfile::TempDir,
}

impl Nvidia {
    fn new(transcript: &str) -> Nvidia {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        for node in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"] {
            fs::write(root.path().join("dev").join(node), "").unwrap();
        }
        Nvidia { transcript: Transcript::of(transcript), root }
    }
}

impl Rig for Nvidia {
    fn provider(&self) -> Box<dyn Provider> {
        Box::new(Nvml::new(Box::new(self.transcript.clone()), self.root.path().to_owned()))
    }

    fn break_it(&self) {
        let error = ProviderError::Nvml {
            call: "nvmlDeviceGetCount".into(),
            message: "driver/library version mismatch".into(),
        };
        *self.transcript.0.lock().unwrap() = Err(error);
    }

    fn uses(&self, device: usize, bytes: u64) {
        self.transcript.change(device, |(reading, _)| reading.memory_used = bytes);
    }

    fn fails(&self, device: usize) {
        self.transcript.change(device, |(reading, _)| reading.fault = Some("pages wait to be retired".to_owned()));
    }

    fn is_there(&self, device: usize, there: bool) {
        self.transcript.change(device, |(_, is_there)| *is_there = there);
    }
}

#[test]
fn nvidia_devices_conform() {
    let rig = Nvidia::new(TWO);
    let gpus = rig.provider().devices().unwrap();
    assert!(gpus[0].links.contains(&gpus[1].id) && gpus[1].links.contains(&gpus[0].id));
    let nodes: Vec<&str> = gpus[1].exposure.nodes.keys().map(String::as_str).collect();
    assert_eq!(nodes, ["/dev/nvidia-uvm", "/dev/nvidia1", "/dev/nvidiactl"]);
    assert_eq!(gpus[0].vendor, Vendor::Nvidia);
    conforms(&rig);
}

#[test]
fn one_device_that_cannot_be_read_is_no_trouble_of_the_others() {
    let rig = Nvidia::new(TWO);
    let gpus = Gpus::of(vec![rig.provider()], vec![]);
    let (first, _) = gpus.read();
    rig.transcript.change(0, |(reading, _)| reading.name.clear());
    let (doubted, troubles) = gpus.read();
    let faults: Vec<Option<&str>> = doubted.iter().map(|gpu| gpu.fault.as_deref()).collect();
    assert_eq!(faults, [Some("NVML: device 0: nvmlDeviceGetUUID: sick"), None]);
    assert_eq!((troubles.len(), &doubted[1], &doubted[0].id), (0, &first[1], &first[0].id));
    rig.transcript.change(0, |(reading, _)| reading.name = "well again".to_owned());
    assert!(gpus.read().0.iter().all(|gpu| gpu.fault.is_none()));
}

#[test]
fn a_provider_that_never_answered_says_why() {
    let rig = Nvidia::new(TWO);
    rig.break_it();
    let (gpus, troubles) = Gpus::of(vec![rig.provider()], vec![]).read();
    assert_eq!(
        (gpus.len(), troubles.join("; ").as_str()),
        (0, "NVML: nvmlDeviceGetCount: driver/library version mismatch")
    );
}

#[test]
fn mig_instances_stand_for_the_device_they_are_part_of() {
    let rig = Nvidia::new(MIG);
    let capabilities = rig.root.path().join("proc/driver/nvidia/capabilities/gpu0/mig/gi1");
    fs::create_dir_all(capabilities.join("ci0")).unwrap();
    fs::write(capabilities.join("access"), "DeviceFileMinor: 12\nDeviceFileMode: 292\n").unwrap();
    fs::write(capabilities.join("ci0/access"), "DeviceFileMinor: 13\nDeviceFileMode: 292\n").unwrap();
    let gpus = rig.provider().devices().unwrap();
    let shown: Vec<(&str, u64)> = gpus.iter().map(|gpu| (gpu.id.0.as_str(), gpu.memory.0 >> 30)).collect();
    assert_eq!(
        shown,
        [("MIG-GPU-5f3b1c2e-8a55-4c0e-9d1b-0f7e6a1b2c3d/1/0", 19), ("MIG-c7384736-a75d-5afc-978f-d2f1294409fd", 4)]
    );
    assert!(gpus[0].exposure.nodes.contains_key("/dev/nvidia-caps/nvidia-cap12"), "{:#?}", gpus[0].exposure);
    assert!(gpus[0].exposure.nodes.contains_key("/dev/nvidia-caps/nvidia-cap13"));
    assert_eq!(gpus[0].exposure.unhonoured, [""; 0]);
    assert!(gpus[1].exposure.unhonoured[0].contains("nvidia-ctk cdi generate"), "{:?}", gpus[1].exposure.unhonoured);
}

#[test]
fn machines_without_devices_have_none_and_no_trouble() {
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(Amd { root: empty.path().to_owned() }.devices(), Ok(vec![]));
    assert_eq!(Nvidia::new("[]").provider().devices(), Ok(vec![]));
}

#[test]
fn simulated_devices_are_described_in_a_word() {
    let gpus = "2x16Gi,1x80Gi".parse::<Simulated>().unwrap().at(std::time::Duration::ZERO);
    let memories: Vec<String> = gpus.iter().map(|gpu| gpu.memory.to_string()).collect();
    assert_eq!(memories, ["16Gi", "16Gi", "80Gi"]);
    assert_eq!(gpus[2].id.0, "GPU-00000000-0000-0000-0000-000000000002");
    for text in ["", "2", "x16Gi", "0x16Gi", "2x0", "99x1Gi", "-1x1Gi", "2x16Gb", "60x1Gi,60x1Gi", "/nowhere.yaml"] {
        assert!(text.parse::<Simulated>().is_err(), "{text:?}");
    }
}

#[test]
fn inventories_that_make_no_sense_are_refused_by_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gpus.yaml");
    for (text, message) in [
        ("devices: [{memory: 16}]\nevents: [{at: 1s, device: GPU-x, present: false}]", "no device of it"),
        ("devices: [{memory: 16Gi, id: a}, {memory: 16Gi, id: a}]", "there twice"),
        ("devices: [{memory: 16Gb}]", "expected for example 16Gi"),
        ("devices: [{memory: 16Gi, id: a}]\nevents: [{at: 1s, device: a}]", "has to say one of"),
        (
            "devices: [{memory: 16Gi, id: a}]\nevents: [{at: 1s, device: a, fault: x, present: true}]",
            "has to say one of",
        ),
        ("devices: [{memory: 16Gi, deviceNodes: [null]}]", ""),
        ("devices: [{memory: 16Gi, deviceNodes: [zero]}]", "no absolute path"),
        ("devices: [{memory: 16Gi, colour: red}]", "colour"),
    ] {
        fs::write(&path, text).unwrap();
        let error = path.to_str().unwrap().parse::<Simulated>().unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("gpus.yaml"), "{text}: {error}");
    }
}

#[test]
fn what_a_script_says_happens_when_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gpus.yaml");
    let text = "devices: [{id: a, memory: 16Gi}]\nevents:\n- {at: 20s, device: a, recovered: true}\n\
                - {at: 10s, device: a, fault: Xid 79}\n- {at: 30s, device: a, present: false}\n";
    fs::write(&path, text).unwrap();
    let simulated: Simulated = path.to_str().unwrap().parse().unwrap();
    let stands = |seconds| {
        let gpus = simulated.at(std::time::Duration::from_secs(seconds));
        gpus.first().map_or_else(|| "gone".to_owned(), |gpu| gpu.fault.clone().unwrap_or_default())
    };
    assert_eq!([0, 9, 10, 19, 20, 29, 30].map(stands), ["", "", "Xid 79", "Xid 79", "", "", "gone"]);
}

//! What CDI specs add to a provider's devices.

use super::*;

const SPEC: &str = r#"{
  "cdiVersion": "0.6.0",
  "kind": "nvidia.com/gpu",
  "devices": [
    {"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}, {"path": "/dev/nvidia1"}]}},
    {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}, {"path": "/dev/dri/renderD128"}]}},
    {"name": "GPU-9c8d7e6f-1234-4abc-8def-001122334455", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1", "permissions": "r"}]}}
  ],
  "containerEdits": {
    "env": ["NVIDIA_VISIBLE_DEVICES=void"],
    "deviceNodes": [{"path": "/dev/nvidia-modeset"}],
    "hooks": [{"hookName": "createContainer", "path": "/usr/bin/nvidia-ctk", "args": ["x"]}],
    "mounts": [{"hostPath": "/usr/lib/libcuda.so.1", "containerPath": "/usr/lib/libcuda.so.1", "options": ["ro", "nosuid", "bind"]}],
    "intelRdt": {}
  }
}"#;

#[test]
fn cdi_specs_are_honoured_as_far_as_is_said() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("nvidia.json"), SPEC).unwrap();
    fs::write(folder.path().join("broken.json"), "{").unwrap();
    fs::write(
        folder.path().join("amd.yaml"),
        "kind: amd.com/gpu\ndevices: [{name: '0', containerEdits: {env: [A=b]}}]",
    )
    .unwrap();
    let rig = Nvidia::new(TWO);
    let gpus = Gpus::of(vec![rig.provider()], vec![folder.path().to_owned()]).read().0;
    let nodes = |at: usize| gpus[at].exposure.nodes.keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(
        nodes(0),
        ["/dev/dri/renderD128", "/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidiactl"]
    );
    assert_eq!(nodes(1), ["/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia1", "/dev/nvidiactl"]);
    let exposure = &gpus[1].exposure;
    assert_eq!(exposure.env, [("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned())].into());
    assert_eq!(exposure.mounts.len(), 1);
    assert_eq!(
        exposure.unhonoured,
        [
            "CDI hook createContainer /usr/bin/nvidia-ctk: programs of the host are not run for a box",
            "CDI intelRdt",
            "CDI permissions of /dev/nvidia1: it is open for reading and writing",
        ]
    );
}

#[test]
fn a_cdi_spec_that_others_can_write_is_left_out() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nvidia.json");
    fs::write(&path, SPEC).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let rig = Nvidia::new(TWO);
    let gpus = Gpus::of(vec![rig.provider()], vec![folder.path().to_owned()]).read().0;
    assert!(gpus[0].exposure.env.is_empty());
    assert_eq!(gpus[0].memory, Bytes(40 << 30));
}

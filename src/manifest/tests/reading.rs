//! What a manifest means: every field, as it is read.

use super::spec;

#[test]
fn the_teaching_example_reads_as_it_is() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&spec("cpu: 2\nmemory: 512M\ngpu: true\ncommand: stress --cpu 2\n")).unwrap(), @r#"
    {
      "name": "web",
      "kind": "service",
      "process": {
        "command": [
          "stress",
          "--cpu",
          "2"
        ],
        "env": {},
        "workdir": "/",
        "user": {
          "uid": 0,
          "gid": 0
        },
        "rootfs": "host",
        "volumes": [],
        "network": "host",
        "security": {
          "user_namespace": true,
          "capabilities": [],
          "seccomp": "default",
          "no_new_privileges": true
        },
        "rlimits": {},
        "oom_score_adj": 0
      },
      "resources": {
        "cpu": {
          "request": 0,
          "limit": {
            "at": 2000
          },
          "weight": 100,
          "burst": {
            "secs": 0,
            "nanos": 0
          },
          "class": "shared"
        },
        "memory": {
          "request": 0,
          "min": 0,
          "high": "max",
          "limit": {
            "at": 512000000
          },
          "swap": {
            "at": 0
          },
          "oom_group": false,
          "force": false
        },
        "pids": {
          "at": 512
        },
        "io": {
          "weight": 100,
          "limits": {}
        },
        "hugepages": {}
      },
      "gpu": {
        "count": 1,
        "memory": null,
        "model": null,
        "onUnhealthy": "restart",
        "align": "preferred",
        "rebalance": "never"
      },
      "priority": 0,
      "labels": {},
      "hosts": {},
      "restart": {
        "policy": "always",
        "initial_delay": {
          "secs": 1,
          "nanos": 0
        },
        "max_delay": {
          "secs": 300,
          "nanos": 0
        },
        "reset_after": {
          "secs": 600,
          "nanos": 0
        }
      },
      "stop": {
        "signal": 15,
        "grace": {
          "secs": 10,
          "nanos": 0
        }
      },
      "suspend": false,
      "job": {
        "timeout": null,
        "retries": "max",
        "schedule": null
      },
      "replica": null,
      "after": []
    }
    "#);
}

#[test]
fn every_field_is_read() {
    let text = r#"
apiVersion: containerctl/v1
name: trainer
kind: job
command: ["python3", "-c", "print(1)", ""]
env: {PORT: 8080, VERSION: 1.10, EMPTY: "", YES: yes}
workdir: /srv
user: "1000:100"
labels: {team: a}
hosts: {role: gpu, hostname: edge-7}
priority: -5
cpu: {request: 1, limit: 1500m, weight: 50, burst: 10ms, class: shared}
memory: {request: 64Mi, high: 200Mi, limit: 256Mi, swap: 16Mi}
gpu: {count: 2, memory: 8Gi, model: H200, onUnhealthy: keep}
pids: max
volumes: [{source: /srv/data, target: /mnt/, readOnly: true}]
restart: {policy: never, initialDelay: 2s, maxDelay: 1m, resetAfter: 1h}
stop: {signal: INT, grace: 1500ms}
suspend: true
replicas: 1
rootfs: host
network: host
"#;
    insta::assert_snapshot!(serde_json::to_string_pretty(&spec(text)).unwrap(), @r#"
    {
      "name": "trainer",
      "kind": "job",
      "process": {
        "command": [
          "python3",
          "-c",
          "print(1)",
          ""
        ],
        "env": {
          "EMPTY": "",
          "PORT": "8080",
          "VERSION": "1.10",
          "YES": "yes"
        },
        "workdir": "/srv",
        "user": {
          "uid": 1000,
          "gid": 100
        },
        "rootfs": "host",
        "volumes": [
          {
            "source": "/srv/data",
            "target": "/mnt",
            "read_only": true,
            "suid": false,
            "dev": false
          }
        ],
        "network": "host",
        "security": {
          "user_namespace": true,
          "capabilities": [],
          "seccomp": "default",
          "no_new_privileges": true
        },
        "rlimits": {},
        "oom_score_adj": 0
      },
      "resources": {
        "cpu": {
          "request": 1000,
          "limit": {
            "at": 1500
          },
          "weight": 50,
          "burst": {
            "secs": 0,
            "nanos": 10000000
          },
          "class": "shared"
        },
        "memory": {
          "request": 67108864,
          "min": 0,
          "high": {
            "at": 209715200
          },
          "limit": {
            "at": 268435456
          },
          "swap": {
            "at": 16777216
          },
          "oom_group": false,
          "force": false
        },
        "pids": "max",
        "io": {
          "weight": 100,
          "limits": {}
        },
        "hugepages": {}
      },
      "gpu": {
        "count": 2,
        "memory": 8589934592,
        "model": "H200",
        "onUnhealthy": "keep",
        "align": "preferred",
        "rebalance": "never"
      },
      "priority": -5,
      "labels": {
        "team": "a"
      },
      "hosts": {
        "hostname": "edge-7",
        "role": "gpu"
      },
      "restart": {
        "policy": "never",
        "initial_delay": {
          "secs": 2,
          "nanos": 0
        },
        "max_delay": {
          "secs": 60,
          "nanos": 0
        },
        "reset_after": {
          "secs": 3600,
          "nanos": 0
        }
      },
      "stop": {
        "signal": 2,
        "grace": {
          "secs": 1,
          "nanos": 500000000
        }
      },
      "suspend": true,
      "job": {
        "timeout": null,
        "retries": "max",
        "schedule": null
      },
      "replica": {
        "of": "trainer",
        "index": 0,
        "count": 1
      },
      "after": []
    }
    "#);
}

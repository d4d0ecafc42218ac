//! Compiles the proto files without a protoc binary.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTO: &str = "proto";
const FILES: [&str; 11] = [
    "monitor/v1/alert.proto",
    "monitor/v1/audit.proto",
    "monitor/v1/node.proto",
    "monitor/v1/verify.proto",
    "monitor/v1/monitor.proto",
    "monitor/v1/collector.proto",
    "monitor/v1/profile.proto",
    "monitor/v1/policy.proto",
    "monitor/v1/approval.proto",
    "monitor/v1/rollback.proto",
    "monitor/v1/cluster.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}");

    let mut descriptors = protox::compile(FILES, [PROTO])?;
    tonic_prost_build::configure()
        // Each is much larger than what else its stream carries.
        .boxed(".monitor.v1.AlertsResponse.response.alert")
        .boxed(".monitor.v1.VerifyContainerResponse.response.begun")
        .boxed(".monitor.v1.JoinRequest.request.incident")
        .compile_fds(descriptors.clone())?;

    // Reflection needs no comments, and they are half of the bytes.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("monitor.v1.bin"), descriptors.encode_to_vec())?;
    Ok(())
}

//! Compiles the part of etcd's API that the benchmark speaks.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILE: &str = "src/bin/bench/etcd.proto";
    println!("cargo:rerun-if-changed={FILE}");
    let files = protox::compile([FILE], ["src/bin/bench"])?;
    let mut config = tonic_prost_build::Config::new();
    config.bytes(["."]);
    tonic_prost_build::configure().compile_fds_with_config(files, config)?;
    Ok(())
}

//! Links the program at a fixed low address, for its own target only.

fn main() {
    println!("cargo::rerun-if-changed=user.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let dir = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo::rustc-link-arg=-T{dir}/user.ld");
        println!("cargo::rustc-link-arg=--no-pie");
        // The kernel carries the file in its image.
        println!("cargo::rustc-link-arg=--strip-all");
    }
}

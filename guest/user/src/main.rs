//! user
#![cfg_attr(target_os = "none", no_std, no_main)]
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! { loop {} }
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! { loop {} }
#[cfg(not(target_os = "none"))]
fn main() {}

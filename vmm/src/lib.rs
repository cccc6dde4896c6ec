//! The memvisor virtual machine monitor as a library; the binary is a thin shell around it.

pub mod machine;

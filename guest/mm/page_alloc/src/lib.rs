//! page_alloc.
#![no_std]
#![forbid(unsafe_code)]

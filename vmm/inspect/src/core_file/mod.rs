//! Dumps: ELF core files of a whole machine.

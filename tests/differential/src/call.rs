//! A call and what its values mean.

use crate::text;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// A part of the address space that is free; everything outside the holes is taken, in both kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hole {
    /// 704 pages: more than the guard gap of a stack.
    Main,
    /// 64 pages below 2 GiB, for MAP_32BIT.
    Low,
    /// 64 pages where the heap begins.
    Heap,
}

impl Hole {
    /// All of them.
    pub const ALL: [Hole; 3] = [Hole::Main, Hole::Low, Hole::Heap];

    /// Its size in pages.
    pub const fn pages(self) -> u64 {
        match self {
            Hole::Main => 704,
            Hole::Low | Hole::Heap => 64,
        }
    }

    /// What the program calls it.
    pub const fn letter(self) -> char {
        match self {
            Hole::Main => 'm',
            Hole::Low => 'l',
            Hole::Heap => 'h',
        }
    }

    /// What a case calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Hole::Main => "main",
            Hole::Low => "low",
            Hole::Heap => "heap",
        }
    }
}

/// A value of a call: a number, or an offset in bytes from the start of a hole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Value {
    /// Where it counts from.
    pub hole: Option<Hole>,
    /// The number.
    pub number: u64,
}

impl Value {
    /// A number.
    pub const fn number(number: u64) -> Value {
        Value { hole: None, number }
    }

    /// An address in a hole.
    pub const fn at(hole: Hole, offset: u64) -> Value {
        Value { hole: Some(hole), number: offset }
    }
}

/// What a value is, which decides how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// An address.
    Address,
    /// A number of bytes.
    Bytes,
    /// `PROT_`.
    Prot,
    /// `MAP_`.
    MapFlags,
    /// `MREMAP_`.
    RemapFlags,
    /// `MADV_`.
    Advice,
    /// `MLOCK_`.
    LockFlags,
    /// `MCL_`.
    LockAll,
    /// `MS_`.
    SyncFlags,
    /// A descriptor: one of the program's files.
    File,
    /// `RLIMIT_`.
    Resource,
    /// `MPOL_`.
    Policy,
    /// `MPOL_MF_`.
    BindFlags,
    /// How a page is touched.
    Access,
    /// A plain number.
    Count,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident = $text:literal [$($parameter:ident),*];)*) => {
        /// What is called.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Name {
            $($(#[$doc])* $name,)*
        }

        impl Name {
            /// All of them.
            pub const ALL: &[Name] = &[$(Name::$name),*];

            /// How it is written.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Name::$name => $text,)*
                }
            }

            /// Its values.
            pub const fn parameters(self) -> &'static [Parameter] {
                match self {
                    $(Name::$name => &[$(Parameter::$parameter),*],)*
                }
            }
        }
    };
}

calls! {
    /// mmap(2).
    Mmap = "mmap" [Address, Bytes, Prot, MapFlags, File, Bytes];
    /// munmap(2).
    Munmap = "munmap" [Address, Bytes];
    /// mprotect(2).
    Mprotect = "mprotect" [Address, Bytes, Prot];
    /// mremap(2).
    Mremap = "mremap" [Address, Bytes, Bytes, RemapFlags, Address];
    /// madvise(2).
    Madvise = "madvise" [Address, Bytes, Advice];
    /// brk(2).
    Brk = "brk" [Address];
    /// mlock(2).
    Mlock = "mlock" [Address, Bytes];
    /// mlock2(2).
    Mlock2 = "mlock2" [Address, Bytes, LockFlags];
    /// munlock(2).
    Munlock = "munlock" [Address, Bytes];
    /// mlockall(2).
    Mlockall = "mlockall" [LockAll];
    /// munlockall(2).
    Munlockall = "munlockall" [];
    /// msync(2).
    Msync = "msync" [Address, Bytes, SyncFlags];
    /// mincore(2); the answer goes to the address, or to the program's own memory if that is 0.
    Mincore = "mincore" [Address, Bytes, Address];
    /// mbind(2); the nodes are bits, of which so many less one count.
    Mbind = "mbind" [Address, Bytes, Policy, Count, Count, BindFlags];
    /// get_mempolicy(2) of the area at an address.
    AreaPolicy = "policy" [Address];
    /// An instruction that reads a word.
    Read = "read" [Address];
    /// An instruction that writes a word, which depends on the call's number.
    Write = "write" [Address];
    /// A call of the code there; words that were written return at once.
    Execute = "execute" [Address];
    /// A write to each of some pages.
    Fill = "fill" [Address, Count];
    /// A touch, and the faults that it took.
    Faults = "count" [Address, Access];
    /// A hash of all that can be read.
    Contents = "contents" [];
    /// /proc/self/smaps.
    Smaps = "smaps" [];
    /// The kernel writes the file's bytes to memory: address, length, offset in the file.
    Pread = "pread" [Address, Bytes, Bytes];
    /// The kernel writes memory to the file.
    Pwrite = "pwrite" [Address, Bytes, Bytes];
    /// ftruncate(2) of the file.
    Truncate = "truncate" [Bytes];
    /// setrlimit(2); of AS and DATA, how much more than what is used.
    Limit = "limit" [Resource, Bytes];
    /// fork(2): so many calls by the child, then so many by the parent beside it; then the child ends.
    Fork = "fork" [Count, Count];
}

/// A call with its values; those behind the last parameter are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// What is called.
    pub name: Name,
    /// With what.
    pub values: [Value; 6],
}

impl Call {
    /// A call with these values, the others 0.
    pub fn new(name: Name, given: &[Value]) -> Call {
        let mut values = [Value::default(); 6];
        values.iter_mut().zip(given).for_each(|(to, from)| *to = *from);
        Call { name, values }
    }

    /// The line that the program reads.
    pub fn wire(&self) -> String {
        let mut line = self.name.text().to_owned();
        for value in &self.values[..self.name.parameters().len()] {
            line.push(' ');
            line.extend(value.hole.map(Hole::letter));
            line.push_str(&format!("{:x}", value.number));
        }
        line
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name.text())?;
        for (value, &parameter) in self.values.iter().zip(self.name.parameters()) {
            write!(f, " {}", text::show(*value, parameter))?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Call {
    type Err = text::ParseError;

    fn from_str(line: &str) -> Result<Call, text::ParseError> {
        text::parse_call(line)
    }
}

pub use text::ParseError;

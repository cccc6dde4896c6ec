//! A mounted image and the model, which do the same.

use std::collections::HashMap;

use guest_ext2::{Access, Caller, Device, Errno, Ext2, Ino, Name, Ram, Replace, SetAttr, Times, mode};

use crate::host::{self, Debugfs};
use crate::model::{Id, Kind, Model, Node, ROOT};

/// A step of a random sequence. Numbers choose among what there is.
#[derive(Clone, Debug)]
pub enum Op {
    Create(usize, u8, u32),
    Mkdir(usize, u8),
    Symlink(usize, u8, usize),
    Mknod(usize, u8, bool),
    Link(usize, usize, u8),
    Unlink(usize, u8),
    Rmdir(usize, u8),
    Rename(usize, u8, usize, u8, bool),
    Write(usize, usize, usize, u8),
    Truncate(usize, usize),
    Attr(usize, u32, u32),
    Hold(usize),
    Release(usize),
    Read(usize, usize, usize),
    Remount,
}

pub const CALLER: Caller = Caller { uid: 7, gid: 70_000, privileged: true, now: 1_700_000_000 };

#[derive(Debug)]
pub struct Twin {
    pub fs: Option<Ext2<Ram>>,
    pub model: Model,
    pub inos: HashMap<Id, Ino>,
    now: i64,
    /// Calls that there was no room for.
    pub full: u32,
}

/// Names: most are short, some fill a block of a directory soon.
pub fn name(number: u8) -> Vec<u8> {
    match number % 16 {
        15 => vec![b'x'; 256],
        14 => vec![b'y'; 255],
        long @ 10..14 => vec![b'a' + long; 190],
        short => vec![b'a' + short, b'0' + number / 64],
    }
}

fn target(len: usize) -> Vec<u8> {
    (0..len).map(|at| b'a' + u8::try_from(at % 26).expect("small")).collect()
}

impl Twin {
    pub fn new(image: Vec<u8>) -> Twin {
        let fs = Ext2::mount(Ram::new(image), Access::ReadWrite, CALLER.now).expect("mounts");
        let mut model = Model::new();
        let mut twin =
            Twin { fs: Some(fs), model: model.clone(), inos: HashMap::new(), now: CALLER.now, full: 0 };
        twin.inos.insert(ROOT, Ino::ROOT);
        // mke2fs makes it.
        let found = Node { mode: 0o700, ..dir() };
        let id = model.make(ROOT, b"lost+found", found).expect("empty");
        let ino = twin.fs().lookup(Ino::ROOT, b"lost+found").expect("made by mke2fs").ino;
        twin.inos.insert(id, ino);
        twin.model = model;
        twin
    }

    pub fn fs(&mut self) -> &mut Ext2<Ram> {
        self.fs.as_mut().expect("mounted")
    }

    fn pick(&self, number: usize, pick: impl Fn(&Node) -> bool) -> Option<Id> {
        let ids = self.model.ids(pick);
        ids.get(number.checked_rem(ids.len())?).copied()
    }

    fn dir(&self, number: usize) -> Id {
        self.pick(number, |node| matches!(node.kind, Kind::Dir(_))).expect("the root")
    }

    fn caller(&mut self) -> Caller {
        self.now += 1;
        Caller { now: self.now, ..CALLER }
    }

    /// Does the same twice. What finds no room must have changed nothing, and the model changes nothing either.
    fn both<T>(
        &mut self,
        real: impl FnOnce(&mut Ext2<Ram>) -> Result<T, Errno>,
        model: impl FnOnce(&mut Model) -> Result<Id, Errno>,
    ) -> Option<(T, Id)> {
        let real = real(self.fs());
        if matches!(real, Err(Errno::Enospc)) {
            self.full += 1;
            return None;
        }
        let said = model(&mut self.model);
        match (real, said) {
            (Ok(real), Ok(id)) => Some((real, id)),
            (Err(real), Err(said)) => {
                assert_eq!(real, said);
                None
            }
            (real, said) => panic!("ext2 said {:?}, the model {said:?}", real.map(drop)),
        }
    }

    fn made(&mut self, pair: Option<(guest_ext2::Inode, Id)>) {
        if let Some((inode, id)) = pair {
            assert!(self.inos.values().all(|ino| *ino != inode.ino), "{} is in use", inode.ino);
            self.inos.insert(id, inode.ino);
        }
    }

    pub fn apply(&mut self, op: &Op) {
        let caller = self.caller();
        match *op {
            Op::Create(at, word, bits) => {
                let (at, word) = (self.dir(at), name(word));
                let dir = self.inos[&at];
                let node = Node { kind: Kind::File(Vec::new()), ..node(bits & 0o7777, &caller) };
                let pair = self.both(|fs| fs.create(&caller, dir, &word, bits), |m| m.make(at, &word, node));
                self.made(pair);
            }
            Op::Mkdir(at, word) => {
                let (at, word) = (self.dir(at), name(word));
                let ino = self.inos[&at];
                let node = Node { uid: caller.uid, gid: caller.gid, ..dir() };
                let pair = self.both(|fs| fs.mkdir(&caller, ino, &word, 0o755), |m| m.make(at, &word, node));
                self.made(pair);
            }
            Op::Symlink(at, word, len) => {
                let (at, word, to) = (self.dir(at), name(word), target(len));
                let dir = self.inos[&at];
                let node = Node { kind: Kind::Link(to.clone()), ..node(0o777, &caller) };
                let pair = self.both(|fs| fs.symlink(&caller, dir, &word, &to), |m| m.make(at, &word, node));
                self.made(pair);
            }
            Op::Mknod(at, word, pipe) => {
                let (at, word) = (self.dir(at), name(word));
                let dir = self.inos[&at];
                let (kind, bits) =
                    if pipe { (Kind::Pipe, mode::S_IFIFO) } else { (Kind::Device(8, 300), mode::S_IFBLK) };
                let node = Node { kind, ..node(0o644, &caller) };
                let device = Device { major: 8, minor: 300 };
                let pair = self.both(
                    |fs| fs.mknod(&caller, (dir, &word), bits | 0o644, device),
                    |m| m.make(at, &word, node),
                );
                self.made(pair);
            }
            Op::Link(what, at, word) => {
                let Some(id) = self.pick(what, |_| true) else { return };
                let (at, word) = (self.dir(at), name(word));
                let (ino, dir) = (self.inos[&id], self.inos[&at]);
                self.both(|fs| fs.link(&caller, ino, dir, &word), |m| m.link(id, at, &word).map(|()| id));
            }
            Op::Unlink(at, word) => {
                let (at, word) = (self.dir(at), name(word));
                let dir = self.inos[&at];
                self.both(|fs| fs.unlink(dir, &word, caller.now), |m| m.unlink(at, &word).map(|()| at));
            }
            Op::Rmdir(at, word) => {
                let (at, word) = (self.dir(at), name(word));
                let dir = self.inos[&at];
                self.both(|fs| fs.rmdir(dir, &word, caller.now), |m| m.rmdir(at, &word).map(|()| at));
            }
            Op::Rename(from, old, to, new, replace) => {
                let (from, to, old, new) = (self.dir(from), self.dir(to), name(old), name(new));
                let (a, b) =
                    (Name { dir: self.inos[&from], name: &old }, Name { dir: self.inos[&to], name: &new });
                let how = if replace { Replace::Yes } else { Replace::No };
                self.both(
                    |fs| fs.rename(&caller, a, b, how),
                    |m| m.rename((from, &old), (to, &new), replace).map(|()| from),
                );
            }
            Op::Write(what, offset, len, byte) => self.write(what, offset, &vec![byte; len], &caller),
            Op::Truncate(what, size) => {
                let Some(id) = self.pick(what, |node| matches!(node.kind, Kind::File(_))) else { return };
                let ino = self.inos[&id];
                self.fs().truncate(ino, size as u64, caller.now).expect("there is always room for less");
                self.model.truncate(id, size);
                self.model.node_mut(id).mtime = caller.now;
            }
            Op::Attr(what, bits, uid) => {
                let Some(id) = self.pick(what, |_| true) else { return };
                let ino = self.inos[&id];
                let times = Times { mtime: Some(i64::from(bits)), ..Times::default() };
                let attr = SetAttr { mode: Some(bits), uid: Some(uid), gid: Some(uid / 3), times };
                self.fs().set_attr(ino, &attr, caller.now).expect("sets");
                let node = self.model.node_mut(id);
                (node.mode, node.uid, node.gid, node.mtime) = (bits & 0o7777, uid, uid / 3, i64::from(bits));
            }
            Op::Hold(what) => {
                let Some(id) = self.pick(what, |_| true) else { return };
                let ino = self.inos[&id];
                self.fs().hold(ino).expect("exists");
                self.model.node_mut(id).holds += 1;
            }
            Op::Release(what) => {
                let Some(id) = self.pick(what, |node| node.holds > 0) else { return };
                if id != ROOT || self.model.node(id).holds > 1 {
                    self.release(id);
                }
            }
            Op::Read(what, offset, len) => {
                let Some(id) = self.pick(what, |node| matches!(node.kind, Kind::File(_))) else { return };
                let ino = self.inos[&id];
                let mut bytes = vec![0xee; len];
                let read = self.fs().read(ino, offset as u64, &mut bytes).expect("reads");
                let Kind::File(content) = &self.model.node(id).kind else { panic!("no file") };
                let expected = content.get(offset.min(content.len())..).unwrap_or(&[]);
                assert_eq!(bytes[..read], expected[..len.min(expected.len())]);
            }
            Op::Remount => self.remount(),
        }
        self.forget_gone();
    }

    fn write(&mut self, what: usize, offset: usize, bytes: &[u8], caller: &Caller) {
        let Some(id) = self.pick(what, |node| matches!(node.kind, Kind::File(_))) else { return };
        let ino = self.inos[&id];
        let written = match self.fs().write(caller, ino, offset as u64, bytes) {
            Ok(written) => written,
            Err(Errno::Enospc) => {
                self.full += 1;
                return;
            }
            Err(error) => panic!("write: {error}"),
        };
        if written > 0 {
            self.model.write(id, offset, &bytes[..written]);
            self.model.node_mut(id).mtime = caller.now;
        }
    }

    fn forget_gone(&mut self) {
        let model = &self.model;
        self.inos.retain(|id, _| model.nodes.contains_key(id));
    }

    fn release(&mut self, id: Id) {
        let (ino, now) = (self.inos[&id], self.now);
        self.fs().release(ino, now).expect("releases");
        self.model.release(id);
        self.forget_gone();
    }

    fn release_all(&mut self) {
        while let Some(id) = self.pick(0, |node| node.holds > 0).filter(|id| *id != ROOT) {
            self.release(id);
        }
        while let Some(id) = self.pick(0, |node| node.holds > 0 && node.names == 0) {
            self.release(id);
        }
        for id in self.model.ids(|node| node.holds > 0) {
            while self.model.node(id).holds > u32::from(id == ROOT) {
                self.release(id);
            }
        }
    }

    /// Unmounts; the image is on its own then.
    pub fn unmount(&mut self) -> Vec<u8> {
        self.release_all();
        let mut fs = self.fs.take().expect("mounted");
        assert_eq!(fs.take_error(), None);
        fs.unmount(self.now).expect("unmounts");
        fs.into_buffers().bytes().to_vec()
    }

    fn remount(&mut self) {
        let image = self.unmount();
        self.fs = Some(Ext2::mount(Ram::new(image), Access::ReadWrite, self.now).expect("mounts again"));
    }

    /// Everything that ext2 and debugfs tell is as in the model, and e2fsck is content.
    pub fn check(&mut self) {
        self.check_names();
        let image = self.unmount();
        if let Err(said) = host::e2fsck(&image) {
            panic!("{said}");
        }
        self.check_debugfs(&Debugfs::new(&image));
    }

    fn check_names(&mut self) {
        for id in self.model.ids(|node| matches!(node.kind, Kind::Dir(_))) {
            let dir = self.inos[&id];
            let mut listed: Vec<(Vec<u8>, Ino)> = Vec::new();
            self.fs()
                .list(dir, 0, |entry| {
                    listed.push((entry.name.to_vec(), entry.ino));
                    true
                })
                .expect("lists");
            let mut expected: Vec<(Vec<u8>, Ino)> =
                self.model.names(id).iter().map(|(name, child)| (name.clone(), self.inos[child])).collect();
            if self.model.node(id).names > 0 {
                expected.push((b".".to_vec(), dir));
                expected.push((b"..".to_vec(), self.inos[&self.model.node(id).parent]));
            }
            listed.sort();
            expected.sort();
            assert_eq!(listed, expected);
        }
        for id in self.model.ids(|node| matches!(node.kind, Kind::Link(_))) {
            let ino = self.inos[&id];
            let Kind::Link(to) = self.model.node(id).kind.clone() else { panic!("no link") };
            assert_eq!(self.fs().read_link(ino).expect("reads"), to);
        }
    }

    fn check_debugfs(&self, debugfs: &Debugfs) {
        let ids: Vec<Id> = self.model.nodes.keys().copied().filter(|id| *id > 1).collect();
        let inos: Vec<u32> = ids.iter().map(|id| self.inos[id].as_u32()).collect();
        for (id, told) in ids.iter().zip(debugfs.stat(&inos)) {
            let node = self.model.node(*id);
            let kind = match &node.kind {
                Kind::File(_) => "regular",
                Kind::Dir(_) => "directory",
                Kind::Link(_) => "symlink",
                Kind::Pipe => "FIFO",
                Kind::Device(..) => "block",
            };
            assert_eq!((told.kind.as_str(), told.mode), (kind, node.mode));
            assert_eq!((told.uid, told.gid, told.links), (node.uid, node.gid, self.model.links(*id)));
            match &node.kind {
                Kind::File(bytes) => {
                    assert_eq!((told.size, i64::from(told.mtime)), (bytes.len() as u64, node.mtime));
                }
                Kind::Link(to) if to.len() < 60 => {
                    assert_eq!(told.target.map(String::into_bytes).as_ref(), Some(to))
                }
                _ => {}
            }
        }
        let files: Vec<Id> = ids
            .iter()
            .copied()
            .filter(|id| matches!(self.model.node(*id).kind, Kind::File(_) | Kind::Link(_)))
            .collect();
        let long = |id: &&Id| !matches!(&self.model.node(**id).kind, Kind::Link(to) if to.len() < 60);
        let files: Vec<Id> = files.iter().filter(long).copied().collect();
        let inos: Vec<u32> = files.iter().map(|id| self.inos[id].as_u32()).collect();
        for (id, bytes) in files.iter().zip(debugfs.dump(&inos)) {
            let (Kind::File(expected) | Kind::Link(expected)) = &self.model.node(*id).kind else {
                panic!("neither file nor link")
            };
            assert!(bytes == *expected, "{} holds other bytes", self.inos[id]);
        }
        let root: Vec<(String, u32)> =
            debugfs.list(2).into_iter().filter(|(name, _)| name != "." && name != "..").collect();
        assert_eq!(root.len(), self.model.names(ROOT).len(), "{root:?}");
    }
}

fn node(mode: u32, caller: &Caller) -> Node {
    Node {
        kind: Kind::Pipe,
        parent: ROOT,
        mode,
        uid: caller.uid,
        gid: caller.gid,
        mtime: caller.now,
        holds: 0,
        names: 1,
    }
}

fn dir() -> Node {
    Node {
        kind: Kind::Dir(std::collections::BTreeMap::new()),
        mode: 0o755,
        ..node(0, &Caller { uid: 0, gid: 0, ..CALLER })
    }
}

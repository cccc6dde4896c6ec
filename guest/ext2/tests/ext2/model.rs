//! What a file system of names should do, in memory and as simply as can be.

use std::collections::BTreeMap;

use guest_ext2::Errno;

pub type Id = usize;
pub const ROOT: Id = 0;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File(Vec<u8>),
    Dir(BTreeMap<Vec<u8>, Id>),
    Link(Vec<u8>),
    Pipe,
    Device(u32, u32),
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub parent: Id,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub holds: u32,
    pub names: u32,
}

/// All nodes that exist; numbers are not used again.
#[derive(Clone, Debug)]
pub struct Model {
    pub nodes: BTreeMap<Id, Node>,
    next: Id,
}

impl Model {
    pub fn new() -> Model {
        let root = Node {
            kind: Kind::Dir(BTreeMap::new()),
            parent: ROOT,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            holds: 1,
            names: 1,
        };
        Model { nodes: BTreeMap::from([(ROOT, root)]), next: 1 }
    }

    pub fn ids(&self, pick: impl Fn(&Node) -> bool) -> Vec<Id> {
        self.nodes.iter().filter(|(_, node)| pick(node)).map(|(id, _)| *id).collect()
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[&id]
    }

    pub fn node_mut(&mut self, id: Id) -> &mut Node {
        self.nodes.get_mut(&id).expect("exists")
    }

    pub fn names(&self, dir: Id) -> &BTreeMap<Vec<u8>, Id> {
        match &self.node(dir).kind {
            Kind::Dir(names) => names,
            _ => panic!("no directory"),
        }
    }

    fn names_mut(&mut self, dir: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.node_mut(dir).kind {
            Kind::Dir(names) => names,
            _ => panic!("no directory"),
        }
    }

    pub fn is_dir(&self, id: Id) -> bool {
        matches!(self.node(id).kind, Kind::Dir(_))
    }

    pub fn links(&self, id: Id) -> u32 {
        if !self.is_dir(id) {
            return self.node(id).names;
        }
        if self.node(id).names == 0 {
            return 0;
        }
        2 + u32::try_from(self.names(id).values().filter(|child| self.is_dir(**child)).count()).expect("few")
    }

    fn may_add(&self, dir: Id, name: &[u8]) -> Result<(), Errno> {
        if name.len() > 255 {
            return Err(Errno::Enametoolong);
        }
        if self.node(dir).names == 0 {
            return Err(Errno::Enoent);
        }
        if self.names(dir).contains_key(name) { Err(Errno::Eexist) } else { Ok(()) }
    }

    pub fn make(&mut self, dir: Id, name: &[u8], node: Node) -> Result<Id, Errno> {
        self.may_add(dir, name)?;
        let id = self.next;
        self.next += 1;
        let (mut gid, mut mode) = (node.gid, node.mode);
        if self.node(dir).mode & 0o2000 != 0 {
            gid = self.node(dir).gid;
            mode |= if matches!(node.kind, Kind::Dir(_)) { 0o2000 } else { 0 };
        }
        self.nodes.insert(id, Node { parent: dir, names: 1, holds: 0, gid, mode, ..node });
        self.names_mut(dir).insert(name.to_vec(), id);
        Ok(id)
    }

    pub fn link(&mut self, id: Id, dir: Id, name: &[u8]) -> Result<(), Errno> {
        if self.is_dir(id) {
            return Err(Errno::Eperm);
        }
        if self.node(dir).names == 0 || name.len() > 255 {
            return self.may_add(dir, name);
        }
        if self.node(id).names == 0 {
            return Err(Errno::Enoent);
        }
        self.may_add(dir, name)?;
        self.node_mut(id).names += 1;
        self.names_mut(dir).insert(name.to_vec(), id);
        Ok(())
    }

    fn find(&self, dir: Id, name: &[u8]) -> Result<Id, Errno> {
        if name.len() > 255 {
            return Err(Errno::Enametoolong);
        }
        self.names(dir).get(name).copied().ok_or(Errno::Enoent)
    }

    fn drop_name(&mut self, id: Id) {
        self.node_mut(id).names -= 1;
        self.drop_unused(id);
    }

    fn drop_unused(&mut self, id: Id) {
        if self.node(id).names == 0 && self.node(id).holds == 0 {
            self.nodes.remove(&id);
        }
    }

    pub fn release(&mut self, id: Id) {
        self.node_mut(id).holds -= 1;
        self.drop_unused(id);
    }

    pub fn unlink(&mut self, dir: Id, name: &[u8]) -> Result<(), Errno> {
        let id = self.find(dir, name)?;
        if self.is_dir(id) {
            return Err(Errno::Eisdir);
        }
        self.names_mut(dir).remove(name);
        self.drop_name(id);
        Ok(())
    }

    pub fn rmdir(&mut self, dir: Id, name: &[u8]) -> Result<(), Errno> {
        let id = self.find(dir, name)?;
        if !self.is_dir(id) {
            return Err(Errno::Enotdir);
        }
        if !self.names(id).is_empty() {
            return Err(Errno::Enotempty);
        }
        self.names_mut(dir).remove(name);
        self.drop_name(id);
        Ok(())
    }

    fn is_above(&self, above: Id, mut id: Id) -> bool {
        loop {
            if id == above {
                return true;
            }
            if id == ROOT {
                return false;
            }
            id = self.node(id).parent;
        }
    }

    pub fn rename(&mut self, from: (Id, &[u8]), to: (Id, &[u8]), replace: bool) -> Result<(), Errno> {
        let source = self.find(from.0, from.1)?;
        match self.may_add(to.0, to.1) {
            Ok(()) | Err(Errno::Eexist) => {}
            Err(error) => return Err(error),
        }
        if self.is_dir(source) && self.is_above(source, to.0) {
            return Err(Errno::Einval);
        }
        if let Some(&target) = self.names(to.0).get(to.1) {
            if !replace {
                return Err(Errno::Eexist);
            }
            if target == source {
                return Ok(());
            }
            match (self.is_dir(source), self.is_dir(target)) {
                (true, false) => return Err(Errno::Enotdir),
                (false, true) => return Err(Errno::Eisdir),
                (true, true) if !self.names(target).is_empty() => return Err(Errno::Enotempty),
                _ => {}
            }
            self.names_mut(to.0).remove(to.1);
            self.drop_name(target);
        }
        self.names_mut(from.0).remove(from.1);
        self.names_mut(to.0).insert(to.1.to_vec(), source);
        self.node_mut(source).parent = to.0;
        Ok(())
    }

    pub fn write(&mut self, id: Id, offset: usize, bytes: &[u8]) {
        let Kind::File(content) = &mut self.node_mut(id).kind else { panic!("no file") };
        let end = offset + bytes.len();
        if content.len() < end && !bytes.is_empty() {
            content.resize(end, 0);
        }
        if !bytes.is_empty() {
            content[offset..end].copy_from_slice(bytes);
        }
    }

    pub fn truncate(&mut self, id: Id, size: usize) {
        let Kind::File(content) = &mut self.node_mut(id).kind else { panic!("no file") };
        content.resize(size, 0);
    }
}

//! From a path to a place (Linux: fs/namei.c).

use alloc::vec::Vec;

use crate::dir::copy;
use crate::flags::mode::{S_IFDIR, S_IFMT};
use crate::flags::{MAXSYMLINKS, NAME_MAX, PATH_MAX};
use crate::inode::{Content, Inode, InodeId};
use crate::proc::{self, Processes};
use crate::vfs::{Context, MountId, Node, Place, Vfs};
use crate::{Data, Errno, no_memory};

/// What to do with a symbolic link at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Go where it leads.
    Yes,
    /// It is meant itself; not if slashes follow.
    No,
}

/// The last part of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// A name.
    Name,
    /// `.`
    Dot,
    /// `..`
    DotDot,
    /// Only slashes: the root.
    Root,
}

/// A path up to its last part.
#[derive(Debug)]
pub(crate) struct Parent {
    /// The directory.
    pub(crate) dir: Place,
    /// Kind of the last part.
    pub(crate) last: Last,
    /// The last part, without slashes.
    pub(crate) name: Vec<u8>,
    /// Slashes follow it.
    pub(crate) slashes: bool,
    /// Links that were followed so far.
    pub(crate) links: u32,
}

/// A path that is being walked: what is left of it begins at `at`.
struct Rest {
    bytes: Vec<u8>,
    at: usize,
}

impl Rest {
    fn skip_slashes(&mut self) -> bool {
        let start = self.at;
        while self.bytes.get(self.at) == Some(&b'/') {
            self.at += 1;
        }
        self.at > start
    }

    /// The next part; empty at the end.
    fn part(&mut self) -> (usize, usize) {
        let start = self.at;
        while self.bytes.get(self.at).is_some_and(|byte| *byte != b'/') {
            self.at += 1;
        }
        (start, self.at)
    }

    fn is_done(&self) -> bool {
        self.bytes.get(self.at..).is_none_or(|rest| rest.iter().all(|byte| *byte == b'/'))
    }

    /// Goes on with a link's target, and then with what is left.
    fn put_before(&mut self, target: &[u8]) -> Result<(), Errno> {
        let left = self.bytes.get(self.at..).unwrap_or(&[]);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(target.len() + left.len()).map_err(no_memory)?;
        bytes.extend_from_slice(target);
        // What is left begins with a slash, or is empty.
        bytes.extend_from_slice(left);
        *self = Rest { bytes, at: 0 };
        Ok(())
    }
}

/// Where a link leads.
enum Target {
    Text(Vec<u8>),
    Place(Place),
}

impl<D: Data, P: Processes> Vfs<D, P> {
    /// The place of `path`, from `base` if it does not begin with a slash. Not held.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ELOOP`, `ENAMETOOLONG`, `ENOMEM`.
    pub fn lookup(
        &self,
        context: &Context,
        base: Place,
        path: &[u8],
        follow: Follow,
    ) -> Result<Place, Errno> {
        let parent = self.parent_of(context, base, path, 0)?;
        self.finish(context, parent, follow)
    }

    /// The place of a path's last part.
    pub(crate) fn finish(
        &self,
        context: &Context,
        mut parent: Parent,
        follow: Follow,
    ) -> Result<Place, Errno> {
        loop {
            let place = self.step(context, &parent)?;
            if follow == Follow::No && !parent.slashes {
                return Ok(place);
            }
            let link = match self.link_target(place)? {
                Some(link) => link,
                None if parent.slashes && !self.is_dir(place) => return Err(Errno::Enotdir),
                None => return Ok(place),
            };
            let links = parent.links + 1;
            if links > MAXSYMLINKS {
                return Err(Errno::Eloop);
            }
            match link {
                Target::Place(place) if parent.slashes && !self.is_dir(place) => return Err(Errno::Enotdir),
                Target::Place(place) => return Ok(place),
                Target::Text(text) => {
                    let slashes = parent.slashes;
                    parent = self.parent_of(context, parent.dir, &text, links)?;
                    parent.slashes |= slashes;
                }
            }
        }
    }

    /// What the last part names, links not followed.
    pub(crate) fn step(&self, context: &Context, parent: &Parent) -> Result<Place, Errno> {
        match parent.last {
            Last::Name => self.child(parent.dir, &parent.name),
            Last::Dot | Last::Root => Ok(parent.dir),
            Last::DotDot => Ok(self.dot_dot(context, parent.dir)),
        }
    }

    /// Walks to the directory of the path's last part.
    pub(crate) fn parent_of(
        &self,
        context: &Context,
        base: Place,
        path: &[u8],
        mut links: u32,
    ) -> Result<Parent, Errno> {
        if path.is_empty() {
            return Err(Errno::Enoent);
        }
        if path.len() >= PATH_MAX {
            return Err(Errno::Enametoolong);
        }
        let mut rest = Rest { bytes: copy(path)?, at: 0 };
        let mut dir = base;
        let mut fresh = true;
        loop {
            // Only at the start of a path or of a link's target does a slash mean the root.
            if rest.skip_slashes() && fresh {
                dir = context.root;
            }
            fresh = false;
            if !self.is_dir(dir) {
                return Err(Errno::Enotdir);
            }
            let (start, end) = rest.part();
            let name = rest.bytes.get(start..end).unwrap_or(&[]);
            let last = match name {
                b"" => Last::Root,
                b"." => Last::Dot,
                b".." => Last::DotDot,
                _ => Last::Name,
            };
            if rest.is_done() {
                let slashes = rest.at < rest.bytes.len() && last != Last::Root;
                return Ok(Parent { dir, last, name: copy(name)?, slashes, links });
            }
            let place = match last {
                Last::Root | Last::Dot => dir,
                Last::DotDot => self.dot_dot(context, dir),
                Last::Name => self.child(dir, name)?,
            };
            match self.link_target(place)? {
                None => dir = place,
                Some(target) => {
                    links += 1;
                    if links > MAXSYMLINKS {
                        return Err(Errno::Eloop);
                    }
                    match target {
                        Target::Place(place) => dir = place,
                        Target::Text(text) => {
                            rest.put_before(&text)?;
                            fresh = true;
                        }
                    }
                }
            }
        }
    }

    /// Whether names can be looked up in it.
    pub fn is_dir(&self, place: Place) -> bool {
        match place.node {
            Node::Inode(id) => self.inode(id).is_some_and(Inode::is_dir),
            Node::Proc(node) => node.is_dir(),
            Node::Disk(node) => self.disk_mode(node).is_some_and(|bits| bits & S_IFMT == S_IFDIR),
        }
    }

    /// Where the link leads; `None` if it is none.
    fn link_target(&self, place: Place) -> Result<Option<Target>, Errno> {
        match place.node {
            Node::Inode(id) => match self.inode(id).map(|inode| &inode.content) {
                Some(Content::Symlink(text)) => Ok(Some(Target::Text(copy(text)?))),
                _ => Ok(None),
            },
            Node::Proc(node) => Ok(match node.follow(&self.processes)? {
                None => None,
                Some(proc::Target::Text(text)) => Some(Target::Text(text)),
                Some(proc::Target::Place(place)) => Some(Target::Place(place)),
            }),
            Node::Disk(node) => Ok(self.disk_link(node)?.map(Target::Text)),
        }
    }

    /// Whether a directory could have an entry of that name. One that was removed has none, however long its name is (Linux: `IS_DEADDIR` in
    /// `__lookup_slow`, before `simple_lookup`).
    pub(crate) fn check_name(&self, dir: Place, name: &[u8]) -> Result<(), Errno> {
        let removed = |id| self.inode(id).is_some_and(|inode| inode.nlink == 0);
        match dir.node {
            Node::Inode(id) if removed(id) => Err(Errno::Enoent),
            Node::Disk(node) if self.disk_removed(node) => Err(Errno::Enoent),
            _ if name.len() > NAME_MAX => Err(Errno::Enametoolong),
            _ => Ok(()),
        }
    }

    /// An entry of a directory, and what is mounted on it.
    pub(crate) fn child(&self, dir: Place, name: &[u8]) -> Result<Place, Errno> {
        self.check_name(dir, name)?;
        let node = match dir.node {
            Node::Inode(id) => {
                let names = self.inode(id).and_then(Inode::dir).ok_or(Errno::Enotdir)?;
                Node::Inode(names.get(name).ok_or(Errno::Enoent)?)
            }
            Node::Proc(node) => Node::Proc(node.child(name, &self.processes).ok_or(Errno::Enoent)?),
            Node::Disk(node) => self.disk_child(node, name)?,
        };
        Ok(self.top(Place { mount: dir.mount, node }))
    }

    /// The root of what is mounted on the place, or the place.
    pub(crate) fn top(&self, mut place: Place) -> Place {
        while let Some(id) = self.mounted_on(place) {
            let Some(root) = self.root_of(id) else { break };
            place = root;
        }
        place
    }

    /// The mount that lies on exactly this place.
    pub(crate) fn mounted_on(&self, place: Place) -> Option<MountId> {
        let at = self.mounts.iter().position(|mount| mount.as_ref().is_some_and(|m| m.at == Some(place)))?;
        u32::try_from(at).ok().map(MountId)
    }

    /// The directory above; the process's root is above itself (Linux: `follow_dotdot`).
    pub(crate) fn dot_dot(&self, context: &Context, mut place: Place) -> Place {
        loop {
            if place == context.root {
                return place;
            }
            let Some(mount) = self.mount_of(place.mount) else { return place };
            if place.node != mount.root {
                break;
            }
            let Some(at) = mount.at else { return place };
            place = at;
        }
        let node = match place.node {
            Node::Inode(id) => Node::Inode(self.inode(id).map_or(id, |inode| inode.parent)),
            Node::Proc(node) => Node::Proc(node.parent()),
            Node::Disk(node) => Node::Disk(self.disk_parent(node)),
        };
        self.top(Place { mount: place.mount, node })
    }

    /// The path of a place as seen from the process's root (Linux: `d_path`). Says so if it has no name any more, or
    /// lies outside of the root.
    ///
    /// # Errors
    /// `ENOMEM`, `ENAMETOOLONG`.
    pub fn path_of(&self, context: &Context, place: Place) -> Result<PathOf, Errno> {
        if let Some(path) = self.path_of_pipe(place) {
            return Ok(PathOf { path: path?, state: PathState::Outside });
        }
        // Back to front.
        let mut reversed: Vec<u8> = Vec::new();
        let mut push = |name: &[u8]| -> Result<(), Errno> {
            if reversed.len() + name.len() + 1 > PATH_MAX {
                return Err(Errno::Enametoolong);
            }
            reversed.try_reserve(name.len() + 1).map_err(no_memory)?;
            reversed.extend(name.iter().rev());
            reversed.push(b'/');
            Ok(())
        };
        let mut state = PathState::Reachable;
        let mut at = place;
        while at != context.root {
            let Some(mount) = self.mount_of(at.mount) else { break };
            if at.node == mount.root {
                match mount.at {
                    Some(below) => at = below,
                    None => {
                        if state == PathState::Reachable {
                            state = PathState::Outside;
                        }
                        break;
                    }
                }
                continue;
            }
            let node = match at.node {
                Node::Inode(id) => {
                    let Some(inode) = self.inode(id) else { break };
                    let (dir, name) = match &inode.orphan {
                        Some(name) => {
                            state = PathState::Deleted;
                            (inode.parent, &name[..])
                        }
                        None => match self.name_of(id, inode) {
                            Some(found) => found,
                            None => break,
                        },
                    };
                    push(name)?;
                    Node::Inode(dir)
                }
                Node::Proc(node) => {
                    push(&node.name()?)?;
                    Node::Proc(node.parent())
                }
                Node::Disk(node) => {
                    let Some((dir, name, deleted)) = self.disk_name(node) else { break };
                    if deleted {
                        state = PathState::Deleted;
                    }
                    push(&name)?;
                    Node::Disk(dir)
                }
            };
            at = Place { mount: at.mount, node };
        }
        if reversed.is_empty() {
            reversed.try_reserve(1).map_err(no_memory)?;
            reversed.push(b'/');
        }
        reversed.reverse();
        Ok(PathOf { path: reversed, state })
    }

    /// A directory that names the inode, and the name: usually that which got a name of it last.
    fn name_of(&self, id: InodeId, inode: &Inode<D::Id>) -> Option<(InodeId, &[u8])> {
        let of = |dir: InodeId| Some((dir, self.inode(dir)?.dir()?.name_of(id)?));
        of(inode.parent).or_else(|| {
            let all = u32::try_from(self.inodes.len()).unwrap_or(u32::MAX);
            (0..all).find_map(|dir| of(InodeId(dir)))
        })
    }
}

/// A path for people.
#[derive(Debug, PartialEq, Eq)]
pub struct PathOf {
    /// From the process's root, or from where its names end.
    pub path: Vec<u8>,
    /// Whether it leads to the place.
    pub state: PathState,
}

/// Whether a path leads where it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// It does.
    Reachable,
    /// The file, or a directory above it, has no name any more.
    Deleted,
    /// Not below the process's root.
    Outside,
}

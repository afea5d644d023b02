//! `weir export`: a consistent copy of a database, without blocking its writers.
//!
//! The daemon sends the pages as they are and then the change set that makes them exact; this process puts
//! the copy together, checks it against the position's checksum, and only then gives it its name.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::{Global, output};
use crate::config::Config;
use crate::disk::sync_dir;
use crate::node::admin::{AdminError, Client, Reply, Request, WireName};
use crate::node::image::ImageSums;
use crate::types::{DbName, PageNo, PageSize, Pos};

const EXAMPLES: &str = "\
Examples:
  weir export app.db /backup/app.db            on any node, while writers go on
  weir export app.db /backup/app.db --force    replace an earlier copy
  weir export tenants/7.db - | zstd > 7.db.zst";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The database, as a path below the mount point
    db: OsString,
    /// Where to write the copy; `-` is standard output
    file: PathBuf,
    /// Replace FILE if it is there
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(global.config.as_deref())?;
    let name = database_name(&config, &args.db)?;
    let to_stdout = args.file == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(output::Usage(
            "a database is no text for a terminal; name a file, or redirect".into(),
        )
        .into());
    }
    if !to_stdout {
        check_target(&args.file, args.force)?;
    }
    let mut client = Client::connect(&config.node.data)?;
    let temporary = Temporary::create(if to_stdout { None } else { Some(&args.file) })?;
    let (position, pages) = receive(&mut client, &name, temporary.file())?;
    if to_stdout {
        temporary.copy_to_stdout()?;
    } else {
        temporary.rename(&args.file)?;
        output::print(&format!(
            "exported {name} at {position} ({pages} pages) to {}\n",
            args.file.display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of a database as a user writes it: below the mount point, or a path that leads there.
pub(super) fn database_name(config: &Config, text: &OsString) -> anyhow::Result<DbName> {
    let path = Path::new(text);
    let below = path.strip_prefix(&config.node.mount).unwrap_or(path);
    let below = below.strip_prefix("./").unwrap_or(below);
    DbName::new(below.as_os_str().as_bytes()).map_err(|error| {
        let text = format!(
            "{}: {error}; name the database by its path below {}",
            path.display(),
            config.node.mount.display()
        );
        output::Usage(text).into()
    })
}

/// A file's name with something behind it.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn check_target(file: &Path, force: bool) -> anyhow::Result<()> {
    match fs::symlink_metadata(file) {
        Ok(found) if found.is_dir() => bail!("{} is a directory; name a file", file.display()),
        Ok(found) if !found.is_file() && !found.is_symlink() => {
            bail!("{} is not a regular file; `-` writes to standard output", file.display())
        }
        Ok(_) if !force => bail!("{} exists; --force replaces it", file.display()),
        Ok(_) | Err(_) => {}
    }
    // SQLite would replay them over the copy.
    for suffix in ["-wal", "-journal"] {
        let companion = with_suffix(file, suffix);
        if companion.exists() {
            bail!(
                "{} exists and belongs to another state of {}; close what uses it, or remove both",
                companion.display(),
                file.display()
            );
        }
    }
    Ok(())
}

/// Receives a copy into a file; returns its position and its size in pages.
fn receive(client: &mut Client, name: &DbName, file: &File) -> anyhow::Result<(Pos, u32)> {
    client.send(&Request::Export { db: WireName::from(name) })?;
    let Reply::Copy { page_size, mut pages } = client.receive()? else {
        return Err(AdminError::Unknown.into());
    };
    let mut page_size = PageSize::new(page_size).ok_or(AdminError::Unknown)?;
    let bar = output::progress(pages.into(), "export");
    let mut image = ImageSums::new(page_size);
    let failed = "write the copy";
    loop {
        match client.receive()? {
            Reply::Copy { page_size: size, pages: count } => {
                let before = page_size;
                page_size = PageSize::new(size).ok_or(AdminError::Unknown)?;
                pages = count;
                if page_size != before {
                    file.set_len(0).context(failed)?;
                }
                file.set_len(u64::from(pages) * u64::from(page_size.get())).context(failed)?;
                image.set_size(page_size, pages);
            }
            Reply::Pages { first, bytes } => {
                let first = PageNo::new(first).ok_or(AdminError::Unknown)?;
                let bytes = client.receive_bytes(bytes)?;
                file.write_all_at(&bytes, first.offset(page_size)).context(failed)?;
                image.write(first, &bytes);
                bar.inc((bytes.len() / page_size.bytes()) as u64);
            }
            Reply::Copied { position } => {
                bar.finish_and_clear();
                let position: Pos = position.parse().map_err(|_| AdminError::Unknown)?;
                if image.total() != position.checksum {
                    bail!(
                        "the copy of {name} has checksum {}, its position {position} promises another; \
                         run `weir verify {name}`",
                        image.total()
                    );
                }
                return Ok((position, pages));
            }
            Reply::Status(_)
            | Reply::Progress { .. }
            | Reply::Verified(_)
            | Reply::End
            | Reply::Error { .. } => return Err(AdminError::Unknown.into()),
        }
    }
}

/// The copy until it is complete; gone if it never is.
struct Temporary {
    file: File,
    path: Option<PathBuf>,
}

impl Temporary {
    /// Beside the target, so that a rename finishes it; for standard output, without a name.
    fn create(target: Option<&Path>) -> anyhow::Result<Self> {
        let suffix = format!(".weir-{:08x}", rand::random::<u32>());
        let path = match target {
            Some(target) => with_suffix(target, &suffix),
            None => std::env::temp_dir().join(format!("export{suffix}")),
        };
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("create {}", path.display()))?;
        if target.is_none() {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            return Ok(Self { file, path: None });
        }
        Ok(Self { file, path: Some(path) })
    }

    fn file(&self) -> &File {
        &self.file
    }

    fn rename(mut self, target: &Path) -> anyhow::Result<()> {
        let Some(path) = self.path.take() else { return Ok(()) };
        let done = self.file.sync_all().and_then(|()| {
            rustix::fs::rename(&path, target)?;
            sync_dir(
                target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
            )
        });
        if done.is_err() {
            drop(fs::remove_file(&path)); // It may have its name already.
        }
        done.with_context(|| format!("write {}", target.display()))
    }

    fn copy_to_stdout(mut self) -> anyhow::Result<()> {
        self.file.rewind()?;
        let mut out = io::stdout().lock();
        io::copy(&mut self.file, &mut out)
            .and_then(|_| out.flush())
            .context("write standard output")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            drop(fs::remove_file(path)); // The error that led here is the one to report.
        }
    }
}

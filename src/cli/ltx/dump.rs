//! `weir ltx dump` and `weir ltx verify`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{explain, open};
use crate::cli::output;
use crate::ltx::{Format, Header, Trailer, page_sum};
use crate::node::format_wall_ms;
use crate::types::{Checksum, PageNo};

/// What could be read of a file, and why no more could.
struct Contents {
    header: Option<Header>,
    pages: Vec<StoredPage>,
    trailer: Option<Trailer>,
    error: Option<anyhow::Error>,
}

struct StoredPage {
    page: PageNo,
    offset: u64,
    bytes: u64,
    sum: Checksum,
}

pub(super) fn dump(files: &[PathBuf], format: Format, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut is_sound = true;
    let mut values = Vec::new();
    for path in files {
        let contents = read(path, format, true);
        is_sound &= contents.error.is_none();
        if as_json {
            values.push(contents_json(path, &contents));
        } else {
            output::print(&contents_text(path, &contents))?;
        }
    }
    if as_json {
        output::print(&format!("{:#}\n", Value::from(values)))?;
    }
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn verify(files: &[PathBuf], format: Format, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut is_sound = true;
    let mut values = Vec::new();
    for path in files {
        let contents = read(path, format, false);
        is_sound &= contents.error.is_none();
        if as_json {
            values.push(json!({
                "file": path.to_string_lossy(),
                "ok": contents.error.is_none(),
                "error": contents.error.map(|error| format!("{error:#}")),
                "min_txid": contents.header.map(|header| header.min_txid.to_string()),
                "max_txid": contents.header.map(|header| header.max_txid.to_string()),
                "pages": contents.pages.len(),
            }));
        } else if let Some(error) = contents.error {
            output::print(&format!("{error:#}\n"))?;
        } else if let Some(header) = contents.header {
            let kind = if header.is_snapshot() { "snapshot, " } else { "" };
            output::print(&format!(
                "{}: ok, {kind}transactions {} to {}, {} pages\n",
                path.display(),
                header.min_txid,
                header.max_txid,
                contents.pages.len(),
            ))?;
        }
    }
    if as_json {
        output::print(&format!("{:#}\n", Value::from(values)))?;
    }
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads as much of a file as can be read. Page sums are computed only if asked for.
fn read(path: &Path, format: Format, with_sums: bool) -> Contents {
    let mut contents = Contents { header: None, pages: Vec::new(), trailer: None, error: None };
    let mut decoder = match open(path, format) {
        Ok(decoder) => decoder,
        Err(error) => return Contents { error: Some(error), ..contents },
    };
    contents.header = Some(*decoder.header());
    loop {
        let offset = decoder.offset();
        match decoder.next_page() {
            Ok(Some(page)) => {
                let sum = if with_sums { page_sum(page.page, page.data) } else { Checksum::EMPTY };
                let page = page.page;
                let bytes = decoder.offset() - offset;
                contents.pages.push(StoredPage { page, offset, bytes, sum });
            }
            Ok(None) => break,
            Err(error) => {
                contents.error = Some(explain(path, format, error));
                return contents;
            }
        }
    }
    match decoder.finish() {
        Ok(trailer) => contents.trailer = Some(trailer),
        Err(error) => contents.error = Some(explain(path, format, error)),
    }
    contents
}

fn contents_text(path: &Path, contents: &Contents) -> String {
    let mut text = format!("{}\n", path.display());
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        writeln!(text, "  {name:<14}{value}").expect("BUG: a String takes everything");
    };
    let sum = |sum: Option<Checksum>| sum.map_or("none".to_owned(), |sum| sum.to_string());
    if let Some(header) = &contents.header {
        let kind = if header.is_snapshot() { " (snapshot)" } else { "" };
        line("transactions", &format_args!("{} to {}{kind}", header.min_txid, header.max_txid));
        line("page size", &header.page_size);
        line("commit", &format_args!("{} pages", header.commit));
        let ms = header.timestamp_ms;
        line("timestamp", &format_args!("{} ({ms} ms)", format_wall_ms(ms)));
        line("node", &header.node_id);
        let wal = header.wal;
        if wal.offset != 0 {
            let salts = format!("{:08x} {:08x}", wal.salt1, wal.salt2);
            line("WAL", &format_args!("{} bytes at {}, salts {salts}", wal.size, wal.offset));
        }
        line("pre-apply", &sum(header.pre_apply));
    }
    if let Some(trailer) = contents.trailer {
        line("post-apply", &sum(trailer.post_apply));
        line("file checksum", &trailer.file);
    }
    line("pages", &contents.pages.len());
    if !contents.pages.is_empty() {
        line("", &format_args!("{:>10} {:>12} {:>7}  checksum", "page", "offset", "bytes"));
    }
    for StoredPage { page, offset, bytes, sum } in &contents.pages {
        line("", &format_args!("{:>10} {offset:>12} {bytes:>7}  {sum}", page.get()));
    }
    if let Some(error) = &contents.error {
        line("error", &format_args!("{error:#}"));
    }
    text
}

fn contents_json(path: &Path, contents: &Contents) -> Value {
    let sum = |sum: Option<Checksum>| sum.map(|sum| sum.to_string());
    let header = contents.header.map(|header| {
        json!({
            "flags": header.flags.get(),
            "snapshot": header.is_snapshot(),
            "page_size": header.page_size.get(),
            "commit": header.commit,
            "min_txid": header.min_txid.to_string(),
            "max_txid": header.max_txid.to_string(),
            "timestamp": format_wall_ms(header.timestamp_ms),
            "timestamp_ms": header.timestamp_ms,
            "pre_apply": sum(header.pre_apply),
            "wal_offset": header.wal.offset,
            "wal_size": header.wal.size,
            "wal_salt1": header.wal.salt1,
            "wal_salt2": header.wal.salt2,
            "node_id": header.node_id.to_string(),
        })
    });
    let trailer = contents.trailer.map(|trailer| {
        json!({ "post_apply": sum(trailer.post_apply), "file_checksum": trailer.file.to_string() })
    });
    let pages = contents.pages.iter().map(|stored| {
        json!({
            "page": stored.page.get(),
            "offset": stored.offset,
            "bytes": stored.bytes,
            "checksum": stored.sum.to_string(),
        })
    });
    json!({
        "file": path.to_string_lossy(),
        "header": header,
        "pages": pages.collect::<Value>(),
        "trailer": trailer,
        "error": contents.error.as_ref().map(|error| format!("{error:#}")),
    })
}

//! A library that is preloaded into a process to make its system calls fail, or to kill it between
//! two of them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* FAIL_FSYNC_WHILE=FILE: every fsync and fdatasync fails while FILE exists. */
static int failing(void) {
    const char *flag = getenv("FAIL_FSYNC_WHILE");
    return flag && access(flag, F_OK) == 0;
}

static int is_wal(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path);
    return n > 4 && memcmp(path + n - 4, "-wal", 4) == 0;
}

/* DIE_AFTER=write: the process kills itself when the write that completes a commit in a WAL returned;
   DIE_AFTER=fsync: when the fsync of a WAL returned. */
static void die_after(const char *what) {
    const char *when = getenv("DIE_AFTER");
    if (when && strcmp(when, what) == 0) kill(getpid(), SIGKILL);
}

static int commit_header_written;

static void wrote(int fd, const void *bytes, size_t count, ssize_t result) {
    if (result != (ssize_t)count || !getenv("DIE_AFTER") || !is_wal(fd)) return;
    if (count == 24) {
        const unsigned char *b = bytes;
        commit_header_written = b[4] | b[5] | b[6] | b[7];
    } else if (commit_header_written && count >= 512) {
        die_after("write");
    }
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    ssize_t result = ((ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64"))(fd, bytes, count, at);
    wrote(fd, bytes, count, result);
    return result;
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    ssize_t result = ((ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite"))(fd, bytes, count, at);
    wrote(fd, bytes, count, result);
    return result;
}

int fsync(int fd) {
    if (failing()) { errno = EIO; return -1; }
    int result = ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
    if (is_wal(fd)) die_after("fsync");
    return result;
}

int fdatasync(int fd) {
    if (failing()) { errno = EIO; return -1; }
    int result = ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
    if (is_wal(fd)) die_after("fsync");
    return result;
}
"#;

/// The library for `LD_PRELOAD`; `None`, with the reason printed, without a C compiler.
pub(crate) fn shim() -> Option<String> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let path = BUILT.get_or_init(|| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let source = directory.join("shim.c");
        let library = directory.join(format!("shim-{}.so", std::process::id()));
        std::fs::write(&source, SOURCE).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(&source)
            .arg("-ldl")
            .status();
        built.is_ok_and(|status| status.success()).then_some(library)
    });
    if path.is_none() {
        println!("skipped: no C compiler for the fault library");
    }
    path.as_ref().map(|path| path.to_str().unwrap().to_owned())
}

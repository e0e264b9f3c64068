// SPDX-License-Identifier: GPL-2.0-only
#include "engine/target.h"

#include "base/lock_holder.h"
#include "base/log.h"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <fstream>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

namespace vql {

std::unique_ptr<target> make_null_target(std::string name, uint64_t bytes) {
    auto t = std::make_unique<target>();
    t->name = std::move(name);
    t->bytes = bytes;
    t->discard = true;
    return t;
}

namespace {

result<uint64_t> usable_bytes(const target& t) {
    uint64_t bytes = 0;
    if (t.block_device) {
        if (ioctl(t.fd.get(), BLKGETSIZE64, &bytes) < 0)
            return errno_error(t.path + ": BLKGETSIZE64", errno);
    } else {
        struct stat st {};
        if (fstat(t.fd.get(), &st) < 0)
            return errno_error(t.path + ": fstat", errno);
        bytes = uint64_t(st.st_size);
    }
    return bytes & ~uint64_t(t.block_bytes - 1);
}

// A regular file: O_DIRECT when the kernel tells that blocks of 512 bytes can go straight through.
// (A file system with larger direct-I/O blocks is served through the page cache, since guests
// expect 512-byte sectors of a file.)
bool file_direct_alignment(int fd, uint32_t& memory_align) {
#ifdef STATX_DIOALIGN
    struct statx sx {};
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 && (sx.stx_mask & STATX_DIOALIGN)) {
        if (!sx.stx_dio_offset_align || sx.stx_dio_offset_align > 512)
            return false;
        memory_align = sx.stx_dio_mem_align;
        return true;
    }
#endif
    // Not told: try one block. Buffer address and length of 512 are the strictest we rely on.
    // On this thread's stack, for targets are opened side by side.
    alignas(512) char buffer[512];
    memory_align = 512;
    return pread(fd, buffer, sizeof(buffer), 0) >= 0;
}

void set_direct(int fd, bool on) {
    const int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT);
}

void probe_file(target& t) {
    const int fd = t.fd.get();
    set_direct(fd, true);
    t.direct = (fcntl(fd, F_GETFL) & O_DIRECT) && file_direct_alignment(fd, t.memory_align);
    if (!t.direct)
        set_direct(fd, false);
    // Beyond the end a hole changes nothing, but tells whether the file system can punch one.
    struct stat st {};
    fstat(fd, &st);
    t.discard = !t.read_only && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                          (st.st_size + 4095) & ~off_t(4095), 4096) == 0;
    t.punch_hole = t.discard;
}

result<void> probe_block_device(target& t, dev_t device) {
    int block = 0;
    if (ioctl(t.fd.get(), BLKSSZGET, &block) < 0)
        return errno_error(t.path + ": BLKSSZGET", errno);
    if (block != 512 && block != 4096)
        return error{t.path + ": logical blocks of " + std::to_string(block) +
                     " bytes are not supported (512 or 4096 are)"};
    t.block_bytes = uint32_t(block);
    t.memory_align = uint32_t(block);
    set_direct(t.fd.get(), true);
    t.direct = fcntl(t.fd.get(), F_GETFL) & O_DIRECT;
    // A partition has its queue in its parent's folder.
    const std::string sys =
        "/sys/dev/block/" + std::to_string(major(device)) + ":" + std::to_string(minor(device));
    for (const char* queue : {"/queue/", "/../queue/"}) {
        std::ifstream in(sys + queue + "discard_max_bytes");
        uint64_t limit = 0;
        if (in >> limit) {
            t.discard = limit > 0 && !t.read_only;
            break;
        }
    }
    return {};
}

// Take the target for this process alone. The lock of a daemon that was killed goes when the last
// of its requests has ended, which is what we have to wait for: an old write that lands after a new
// one would undo it.
result<void> lock_target(const target& t, const struct stat& st) {
    constexpr int limit_ms = 5000, step_ms = 10;
    for (int waited = 0; flock(t.fd.get(), LOCK_EX | LOCK_NB) < 0; waited += step_ms) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return errno_error(t.path + ": flock", errno);
        const pid_t holder = lock_holder(st);
        const bool ending = holder > 0 && process_is_ending(holder);
        if (holder > 0 && !ending && (kill(holder, 0) == 0 || errno == EPERM))
            return error{t.path + ": in use by process " + std::to_string(holder) +
                         ", which holds its lock"};
        if (waited == limit_ms)
            return error{t.path + ": locked by process " +
                         (ending ? std::to_string(holder) + ", which was killed" : "that is gone") +
                         " and has I/O that does not end (see dmesg)"};
        if (waited == 1000)
            log_warning("target " + t.name + ": waiting for I/O of an earlier process to end");
        usleep(step_ms * 1000);
    }
    return {};
}

// A block device: also against mounts and other users in the kernel. Done after the lock was waited
// for, since a killed daemon's own claim goes a moment later than its lock.
result<void> open_exclusively(target& t, const struct stat& st) {
    const int flags = (t.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_EXCL;
    unique_fd fd;
    for (int tries = 0; tries < 20 && !fd; tries++) {
        fd.reset(open(t.path.c_str(), flags));
        if (!fd && errno != EBUSY)
            return errno_error(t.path, errno);
        if (!fd)
            usleep(10000);
    }
    if (!fd)
        return error{t.path + ": mounted, or used by another program or by a RAID, LVM or "
                              "device-mapper volume (see lsblk)"};
    t.fd = std::move(fd);
    return lock_target(t, st);
}

} // namespace

result<std::unique_ptr<target>> open_uring_target(std::string name, const std::string& path) {
    auto t = std::make_unique<target>();
    t->name = std::move(name);
    t->kind = target_kind::uring;
    t->path = path;

    struct stat st {};
    if (stat(path.c_str(), &st) < 0)
        // Making it is not what we propose: the device may be late, the file system not mounted.
        return error{path + ": " + std::strerror(errno) +
                     (errno != ENOENT                    ? ""
                      : path.compare(0, 5, "/dev/") == 0 ? " (is the device there?)"
                                                         : " (is its file system mounted?)")};
    t->block_device = S_ISBLK(st.st_mode);
    if (!t->block_device && !S_ISREG(st.st_mode))
        return error{path + ": neither a regular file nor a block device"};

    t->fd.reset(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
    if (!t->fd && (errno == EROFS || errno == EACCES || errno == EPERM)) {
        t->read_only = true;
        t->fd.reset(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    }
    if (!t->fd)
        return errno_error(path, errno);
    if (auto ok = lock_target(*t, st); !ok)
        return ok.failure();
    if (t->block_device)
        if (auto ok = open_exclusively(*t, st); !ok)
            return ok.failure();

    if (t->block_device) {
        if (auto ok = probe_block_device(*t, st.st_rdev); !ok)
            return ok.failure();
    } else {
        probe_file(*t);
    }
    auto bytes = usable_bytes(*t);
    if (!bytes)
        return bytes.failure();
    if (!*bytes)
        return error{path + ": empty (a target needs at least one block; truncate -s SIZE " + path +
                     " sets the size of a file)"};
    t->bytes = *bytes;
    return t;
}

result<uint64_t> grow_target(const target& t, uint64_t want) {
    if (t.kind == target_kind::null)
        return std::max(t.bytes, want);
    auto bytes = usable_bytes(t);
    if (!bytes || *bytes >= want || t.block_device)
        return bytes;
    if (ftruncate(t.fd.get(), off_t(want)) < 0)
        return errno_error(t.path + ": cannot extend the file", errno);
    return usable_bytes(t);
}

} // namespace vql

// SPDX-License-Identifier: GPL-2.0-only
#include "engine/target.h"

#include "base/log.h"
#include "base/signature.h"
#include "engine/image_lock.h"
#include "engine/raw_record.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <fstream>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <vector>

namespace vql {

std::unique_ptr<target> make_null_target(std::string name, uint64_t bytes) {
    auto t = std::make_unique<target>();
    t->name = std::move(name);
    t->bytes = bytes;
    t->discard = true;
    return t;
}

namespace {

// As the kernel tells it.
result<uint64_t> device_bytes(const target& t) {
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
    return bytes;
}

// Whole blocks. The last one of a file may be cut short: the engine reads what is missing there as
// zeroes, and a write makes it whole. So does QEMU.
result<uint64_t> usable_bytes(const target& t) {
    auto bytes = device_bytes(t);
    if (bytes)
        *bytes =
            (t.block_device ? *bytes : *bytes + t.block_bytes - 1) & ~uint64_t(t.block_bytes - 1);
    return bytes;
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

// A block device: also against mounts and other users in the kernel. Done after the lock was waited
// for, since a killed daemon's own claim goes a moment later than its lock. One that is only read
// may be another reader's, who then has the claim for both; from mounts it is told by looking.
result<void> open_exclusively(target& t, dev_t device) {
    const int flags = (t.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_EXCL;
    unique_fd fd;
    std::string user;
    for (int tries = 0; tries < 20 && !fd; tries++) {
        fd.reset(open(t.path.c_str(), flags));
        if (fd)
            break;
        if (errno != EBUSY)
            return errno_error(t.path, errno);
        user = kernel_user_of(device);
        if (t.read_only && user.empty() && has_other_reader(t.fd.get()))
            return {};
        usleep(10000);
    }
    if (!fd && !user.empty())
        return error{t.path + ": in use, " + user};
    if (!fd)
        return error{t.path + ": mounted, or used by another program or by a RAID, LVM or "
                              "device-mapper volume (see lsblk)"};
    t.fd = std::move(fd);
    return lock_image(t.fd.get(), t.read_only, t.path, t.name);
}

std::vector<uint8_t> read_at(int fd, uint64_t offset, size_t bytes) {
    std::vector<uint8_t> data(bytes);
    const ssize_t n = pread(fd, data.data(), bytes, off_t(offset));
    data.resize(n > 0 ? size_t(n) : 0);
    return data;
}

// Others' contents are refused unless they were served before: then a guest wrote them.
result<void> check_contents(const target& t, ino_t inode, raw_record* served) {
    const auto bytes = device_bytes(t);
    if (!bytes)
        return bytes.failure();
    if (!*bytes) // refused as empty, and no guest's
        return {};
    const raw_record::id now{t.block_device ? 0 : inode, *bytes};
    std::string other = other_contents(t.fd.get(), t.path, t.block_device, *bytes);
    if (served && served->has(t.path, now)) {
        if (!other.empty())
            log_warning("target " + t.name + ": served as before, for its guest may have written " +
                        "that: " + other);
        return {};
    }
    if (!other.empty())
        return error{std::move(other)};
    if (!served || t.read_only)
        return {};
    if (auto ok = served->add(t.path, now); !ok)
        log_warning("target " + t.name + ": when vqlaned starts again it will not know that a " +
                    "guest has written there: " + ok.failure().text);
    return {};
}

result<void> open_descriptor(target& t, const open_options& options) {
    const int flags = O_CLOEXEC | O_NONBLOCK;
    if (options.read_only) {
        t.why_read_only = "is open for reading only, because its disks were all read-only when it "
                          "was opened";
    } else {
        t.fd.reset(open(t.path.c_str(), O_RDWR | flags));
        // A device that is read-only opens for writing all the same, and fails each write.
        int read_only = 0;
        if (t.fd && (!t.block_device || ioctl(t.fd.get(), BLKROGET, &read_only) < 0 || !read_only))
            return {};
        const int err = t.fd ? EROFS : errno;
        if (err != EROFS && err != EACCES && err != EPERM)
            return errno_error(t.path, err);
        t.why_read_only = std::string("can be opened for reading only (") + strerror(err) + ")";
    }
    t.read_only = true;
    t.fd.reset(open(t.path.c_str(), O_RDONLY | flags));
    return t.fd ? result<void>() : errno_error(t.path, errno);
}

} // namespace

// Served as they are, the bytes of an image are not what its guest's disk is meant to hold, and
// those of a member of something larger are not ours.
std::string other_contents(int fd, const std::string& path, bool block_device, uint64_t bytes) {
    const auto head = read_at(fd, 0, signature_bytes);
    const uint64_t tail_bytes = std::min<uint64_t>(bytes, signature_tail_bytes);
    const auto tail = read_at(fd, bytes - tail_bytes, tail_bytes);
    const signature image = image_signature(head, tail);
    if (image.name)
        return path + ": it looks like " + image.name +
               ", which would be served byte by byte. Convert it first (qemu-img convert -O raw), "
               "or, if it is a disk whose guest wrote that, say format = \"raw\" for its target "
               "(vqlane disk add: --format raw)";
    const signature member = block_device ? member_signature(head, tail, bytes) : signature{};
    if (member.name)
        return path + ": it looks like " + member.name +
               " of this host, whose bytes a guest would overwrite. If it is a disk whose guest "
               "made that, say format = \"raw\" for its target (vqlane disk add: --format raw)";
    return {};
}

result<std::unique_ptr<target>> open_uring_target(std::string name, const std::string& path,
                                                  const open_options& options) {
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

    if (auto ok = open_descriptor(*t, options); !ok)
        return ok.failure();
    if (auto ok = lock_image(t->fd.get(), t->read_only, path, t->name); !ok)
        return ok.failure();
    if (t->block_device)
        if (auto ok = open_exclusively(*t, st.st_rdev); !ok)
            return ok.failure();
    if (auto ok = refuse_behind_loop(t->fd.get(), t->read_only, path); !ok)
        return ok.failure();
    if (!options.raw)
        if (auto ok = check_contents(*t, st.st_ino, options.served); !ok)
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
    if (const auto whole = device_bytes(*t); whole && *whole != *bytes)
        log_warning("target " + t->name + ": " + path + " has " + std::to_string(*whole) +
                    " bytes, not a multiple of " + std::to_string(t->block_bytes) + ": " +
                    (*whole < *bytes ? "the rest of its last block reads as zeroes"
                                     : "the last ones are out of reach"));
    return t;
}

bool can_grow(const target& t) {
    return t.kind == target_kind::null ||
           (t.kind == target_kind::uring && !t.block_device && !t.read_only);
}

result<uint64_t> grow_target(const target& t, uint64_t want) {
    if (t.kind == target_kind::null)
        return std::max(t.bytes, want);
    auto bytes = usable_bytes(t);
    if (!bytes || *bytes >= want || !can_grow(t))
        return bytes;
    if (ftruncate(t.fd.get(), off_t(want)) < 0)
        return errno_error(t.path + ": cannot extend the file", errno);
    return usable_bytes(t);
}

} // namespace vql

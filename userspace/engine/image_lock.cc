// SPDX-License-Identifier: GPL-2.0-only
#include "engine/image_lock.h"

#include "base/fd.h"
#include "base/lock_holder.h"
#include "base/log.h"
#include "base/peer.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <linux/loop.h>
#include <optional>
#include <span>
#include <sstream>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <utility>

namespace vql {

namespace {

// ---- who holds a lock ----

// A process that holds QEMU's lock of byte @byte by a descriptor other than our @fd; 0: nobody, or
// one that we may not look at. Its fdinfo tells, without a look at the file itself, which may hang.
pid_t byte_holder(int fd, const struct stat& st, uint64_t byte) {
    using std::filesystem::directory_iterator;
    const std::string own = "/proc/" + std::to_string(getpid()) + "/fdinfo/" + std::to_string(fd);
    std::error_code ignored;
    for (const auto& process : directory_iterator("/proc", ignored)) {
        const std::string pid = process.path().filename();
        if (pid.find_first_not_of("0123456789") != pid.npos)
            continue;
        std::error_code gone; // it ended meanwhile, or is another user's
        for (directory_iterator at(process.path() / "fdinfo", gone), end; !gone && at != end;
             at.increment(gone)) {
            if (at->path() == own)
                continue;
            std::ifstream info(at->path());
            std::string line;
            while (std::getline(info, line)) {
                if (line.rfind("lock:", 0) != 0)
                    continue;
                const auto l = parse_lock(line.substr(5));
                if (l && l->type == "OFDLCK" && l->first <= byte && byte <= l->last && l->is_on(st))
                    return pid_t(std::stol(pid));
            }
        }
    }
    return 0;
}

// ---- flock ----

result<void> take_flock(int fd, bool share, const struct stat& st, const std::string& path,
                        const std::string& name) {
    // udev holds the lock of a block device for a moment, while it looks at it.
    constexpr int limit_ms = 5000, step_ms = 10, udev_ms = 1000;
    for (int waited = 0; flock(fd, (share ? LOCK_SH : LOCK_EX) | LOCK_NB) < 0; waited += step_ms) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return errno_error(path + ": flock", errno);
        const pid_t holder = lock_holder(st);
        const bool ending = holder > 0 && process_is_ending(holder);
        if (holder > 0 && !ending && (kill(holder, 0) == 0 || errno == EPERM) &&
            (!S_ISBLK(st.st_mode) || waited >= udev_ms))
            return error{path + ": in use by " + process_of(holder).text() +
                         ", which holds its lock"};
        if (waited == limit_ms)
            return error{path + ": locked by " +
                         (ending ? process_of(holder).text() + ", which was killed"
                                 : std::string("a process that is gone")) +
                         " and has I/O that does not end (see dmesg)"};
        if (waited == 1000)
            log_warning("target " + name + ": waiting for I/O of an earlier process to end");
        usleep(step_ms * 1000);
    }
    return {};
}

// ---- QEMU's locks ----

// Byte 100 + p: "I use permission p". Byte 200 + p: "I let nobody else use permission p". All are
// read locks, so that many may say it; who looks asks whether a write lock would be possible.
// (QEMU: block/file-posix.c, RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE; block-common.h, BLK_PERM_*.)
constexpr off_t uses = 100, forbids = 200;
enum permission : uint8_t { consistent_read, write, write_unchanged, resize };

// As QEMU has a raw image, for a guest that writes it and for one that only reads.
constexpr permission writer_uses[] = {consistent_read, write, resize};
constexpr permission reader_uses[] = {consistent_read};
constexpr permission both_forbid[] = {write, resize};

struct flock byte_lock(short type, off_t byte) {
    struct flock l {};
    l.l_type = type;
    l.l_whence = SEEK_SET;
    l.l_start = byte;
    l.l_len = 1;
    return l;
}

// Does another open file description hold a lock of @byte?
result<bool> is_locked(int fd, off_t byte, const std::string& path) {
    struct flock l = byte_lock(F_WRLCK, byte);
    if (fcntl(fd, F_OFD_GETLK, &l) < 0)
        return errno_error(path + ": F_OFD_GETLK", errno);
    return l.l_type != F_UNLCK;
}

// First say what we do, then look what others do: of two that come at once, one at least sees the
// other. That is QEMU's order too.
result<void> say_to_qemu(int fd, bool share, const std::string& path) {
    const auto say = [&](off_t byte) {
        struct flock l = byte_lock(F_RDLCK, byte);
        return fcntl(fd, F_OFD_SETLK, &l) == 0 ? result<void>()
                                               : errno_error(path + ": F_OFD_SETLK", errno);
    };
    for (permission p : share ? std::span<const permission>(reader_uses) : writer_uses)
        if (auto ok = say(uses + p); !ok)
            return ok;
    for (permission p : both_forbid)
        if (auto ok = say(forbids + p); !ok)
            return ok;
    return {};
}

// The byte by which another has the image in a way that ours excludes; 0: nobody has.
result<off_t> conflict_with_qemu(int fd, bool share, const std::string& path) {
    for (permission p : share ? std::span<const permission>(reader_uses) : writer_uses)
        if (auto held = is_locked(fd, forbids + p, path); !held || *held)
            return held ? result<off_t>(forbids + p) : held.failure();
    for (permission p : both_forbid)
        if (auto held = is_locked(fd, uses + p, path); !held || *held)
            return held ? result<off_t>(uses + p) : held.failure();
    return off_t{0};
}

// A QEMU that was killed keeps its locks for as long as it has I/O there, and a tool of QEMU's is
// gone in a moment: where nobody is seen to hold the lock, it is waited for a little.
result<void> take_qemu_locks(int fd, bool share, const struct stat& st, const std::string& path) {
    constexpr int limit_ms = 3000, pause_ms = 100; // looking for the holder costs something
    for (int waited = 0;; waited += pause_ms) {
        auto ok = say_to_qemu(fd, share, path);
        if (!ok)
            return ok;
        const auto held = conflict_with_qemu(fd, share, path);
        if (!held)
            return held.failure();
        if (!*held)
            return {};
        const pid_t holder = byte_holder(fd, st, uint64_t(*held));
        if (!holder && waited < limit_ms) {
            struct flock none = byte_lock(F_UNLCK, 0);
            none.l_len = 0; // all: while we wait we are in nobody's way
            fcntl(fd, F_OFD_SETLK, &none);
            usleep(pause_ms * 1000);
            continue;
        }
        return error{
            path + ": in use by " + (holder ? process_of(holder).text() : "another process") +
            (*held < forbids ? ", which writes it" : ", which lets nobody else use it so") +
            " (it holds QEMU's image lock of byte " + std::to_string(*held) + ")"};
    }
}

// ---- the kernel's users ----

// Calls @each with the fields of each line of mountinfo until it returns true. (proc(5): 36 35 98:0
// /mnt1 /mnt2 rw … - ext3 /dev/root rw)
void for_each_mount(
    const std::function<bool(const std::string& device, const std::string& point)>& each) {
    std::ifstream mounts("/proc/self/mountinfo");
    std::string line;
    while (std::getline(mounts, line)) {
        std::istringstream words(line);
        std::string id, parent, device, root, point;
        if (words >> id >> parent >> device >> root >> point && each(device, point))
            return;
    }
}

// "major:minor" of what is mounted where @path is; a look at @path itself might hang.
std::string mount_device(const std::string& path) {
    std::string found;
    size_t longest = 0;
    for_each_mount([&](const std::string& device, const std::string& point) {
        const bool below =
            point == "/" || (path.rfind(point, 0) == 0 &&
                             (path.size() == point.size() || path[point.size()] == '/'));
        if (below && point.size() >= longest) { // the later one is on top
            longest = point.size();
            found = device;
        }
        return false;
    });
    return found;
}

// Is @st what loop device @loop has for its backing store?
bool is_behind(const std::string& loop, const struct stat& st) {
    unique_fd fd(open(("/dev/" + loop).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    loop_info64 info{};
    if (fd && ioctl(fd.get(), LOOP_GET_STATUS64, &info) == 0)
        return S_ISBLK(st.st_mode) ? info.lo_rdevice == st.st_rdev
                                   : info.lo_device == st.st_dev && info.lo_inode == st.st_ino;
    std::string path;
    struct stat backing {};
    std::getline(std::ifstream("/sys/block/" + loop + "/loop/backing_file"), path);
    if (stat(path.c_str(), &backing) < 0)
        return false;
    return S_ISBLK(st.st_mode) ? S_ISBLK(backing.st_mode) && backing.st_rdev == st.st_rdev
                               : backing.st_dev == st.st_dev && backing.st_ino == st.st_ino;
}

} // namespace

result<void> lock_image(int fd, bool share, const std::string& path, const std::string& name) {
    struct stat st {};
    if (fstat(fd, &st) < 0)
        return errno_error(path + ": fstat", errno);
    // This first: a daemon of ours that was killed lets go of both at one moment, and this one is
    // known to be worth waiting for.
    if (auto ok = take_flock(fd, share, st, path, name); !ok)
        return ok;
    return take_qemu_locks(fd, share, st, path);
}

result<void> refuse_behind_loop(int fd, bool share, const std::string& path) {
    struct stat st {};
    if (fstat(fd, &st) < 0)
        return errno_error(path + ": fstat", errno);
    std::error_code failed;
    std::string ours; // where the file is, past symbolic links; a block device is wherever it is
    if (!S_ISBLK(st.st_mode))
        ours = mount_device(
            std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd), failed));
    for (const auto& entry : std::filesystem::directory_iterator("/sys/block", failed)) {
        const std::string loop = entry.path().filename();
        std::ifstream attached(entry.path() / "loop/backing_file");
        std::string backing;
        if (loop.rfind("loop", 0) != 0 || !std::getline(attached, backing))
            continue;
        // To ask a loop device is to ask the file system that its file is on: one that hangs must
        // not stop those on others. ("(unreachable)…" is in no mount of ours.)
        if (!ours.empty() && backing[0] == '/' && mount_device(backing) != ours)
            continue;
        int read_only = 0;
        std::ifstream(entry.path() / "ro") >> read_only;
        if ((share && read_only) || !is_behind(loop, st))
            continue;
        return error{path + ": in use by loop device /dev/" + loop +
                     " (detach it first: losetup --detach /dev/" + loop + ")"};
    }
    return {};
}

std::string kernel_user_of(dev_t device) {
    const std::string number = std::to_string(major(device)) + ":" + std::to_string(minor(device));
    std::string found;
    for_each_mount([&](const std::string& mounted, const std::string& point) {
        if (mounted == number)
            found = "mounted on " + point;
        return !found.empty();
    });
    std::error_code failed;
    if (found.empty())
        for (const auto& holder :
             std::filesystem::directory_iterator("/sys/dev/block/" + number + "/holders", failed)) {
            found = "part of " + holder.path().filename().string();
            break;
        }
    std::ifstream swaps("/proc/swaps");
    std::string path;
    for (std::string line; found.empty() && std::getline(swaps, line);) {
        struct stat st {};
        if (std::istringstream(line) >> path && path[0] == '/' && stat(path.c_str(), &st) == 0 &&
            S_ISBLK(st.st_mode) && st.st_rdev == device)
            found = "swap";
    }
    return found;
}

bool has_other_reader(int fd) {
    const auto held = is_locked(fd, uses + consistent_read, "");
    return held && *held;
}

} // namespace vql

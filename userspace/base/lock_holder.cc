// SPDX-License-Identifier: GPL-2.0-only
#include "base/lock_holder.h"

#include "base/log.h"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <fstream>
#include <sstream>
#include <sys/file.h>
#include <sys/sysmacros.h>
#include <unistd.h>

namespace vql {

bool lock_line::is_on(const struct stat& st) const {
    return inode == st.st_ino && device == st.st_dev;
}

std::optional<lock_line> parse_lock(const std::string& text) {
    lock_line l;
    std::istringstream words(text);
    std::string number, mode, access, file, last;
    unsigned device_major = 0, device_minor = 0;
    if (!(words >> number >> l.type >> mode >> access >> l.pid >> file >> l.first >> last) ||
        std::sscanf(file.c_str(), "%x:%x:%lu", &device_major, &device_minor, &l.inode) != 3)
        return {}; // "1: -> FLOCK …": one that waits
    l.device = makedev(device_major, device_minor);
    l.last = last == "EOF" ? UINT64_MAX : std::strtoull(last.c_str(), nullptr, 10);
    return l;
}

pid_t lock_holder(const struct stat& st) {
    std::ifstream locks("/proc/locks");
    for (std::string line; std::getline(locks, line);)
        if (const auto l = parse_lock(line); l && l->type == "FLOCK" && l->is_on(st))
            return l->pid;
    return 0;
}

// Of its first thread: a zombie, since others are not through yet; or SIGKILL is pending, which the
// kernel gives to all threads at once, and which none can put off once it would run our code again.
bool process_is_ending(pid_t pid) {
    std::ifstream status("/proc/" + std::to_string(pid) + "/status");
    std::string key, value;
    while (status >> key && std::getline(status, value)) {
        if (key == "State:" && value.find_first_of("ZX") != value.npos &&
            value.find_first_of("ZX") < 3)
            return true;
        if (key == "SigPnd:" && std::stoull(value, nullptr, 16) >> (SIGKILL - 1) & 1)
            return true;
    }
    return false;
}

result<unique_fd> take_lock_file(const std::string& folder, const std::string& name,
                                 const std::string& busy) {
    // One of us at a time takes or replaces the file, so that two never replace it both.
    const unique_fd all(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!all || flock(all.get(), LOCK_EX) < 0)
        return errno_error(folder, errno);
    const std::string path = folder + "/" + name;
    for (int tries = 0; tries < 2; tries++) {
        unique_fd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        if (!lock)
            return errno_error(path, errno);
        if (flock(lock.get(), LOCK_EX | LOCK_NB) == 0)
            return lock;
        struct stat st {};
        const pid_t holder = fstat(lock.get(), &st) == 0 ? lock_holder(st) : 0;
        if (holder <= 0 || !process_is_ending(holder))
            break;
        log_warning(folder + ": process " + std::to_string(holder) +
                    " was killed and has I/O that does not end; taking its place");
        unlink(path.c_str());
    }
    return error{busy};
}

} // namespace vql

// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/storage_child.h"

#include "base/fd.h"

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <linux/falloc.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace vql {

namespace {

constexpr const char* marker = "--storage-child";
constexpr int file_fd = 3; // of the file to grow, in the child

// Run the child, with @fd as its file if it is one, and wait for its end: that wait can be killed.
void run_child(const char* what, const std::string& argument, int fd) {
    posix_spawn_file_actions_t actions;
    if (posix_spawn_file_actions_init(&actions) != 0)
        return;
    std::string program = "vqlaned", first = marker, second = what, third = argument;
    std::array<char*, 5> args = {program.data(), first.data(), second.data(), third.data(),
                                 nullptr};
    pid_t child = -1;
    // All else of the daemon's is close-on-exec.
    if ((fd < 0 || posix_spawn_file_actions_adddup2(&actions, fd, file_fd) == 0) &&
        posix_spawn(&child, "/proc/self/exe", &actions, nullptr, args.data(), environ) == 0)
        while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
        }
    posix_spawn_file_actions_destroy(&actions);
}

// What open_uring_target() does that storage has to answer, but for the locks.
void open_and_look(const char* path, bool read_only) {
    struct stat st {};
    if (stat(path, &st) < 0 || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
        return;
    unique_fd fd;
    if (!read_only)
        fd.reset(open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK));
    read_only = !fd;
    if (!fd)
        fd.reset(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!fd)
        return;
    if (S_ISREG(st.st_mode) && !read_only) // beyond the end, where a hole changes nothing
        [[maybe_unused]]
        const int punched = fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                      (st.st_size + 4095) & ~off_t(4095), 4096);
    alignas(4096) std::array<char, 4096> block;
    if (fcntl(fd.get(), F_SETFL, O_DIRECT) == 0) [[maybe_unused]]
        const ssize_t n = pread(fd.get(), block.data(), block.size(), 0);
}

void grow(const char* bytes) {
    const auto want = off_t(std::strtoull(bytes, nullptr, 10));
    struct stat st {};
    if (fstat(file_fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size < want) [[maybe_unused]]
        const int grown = ftruncate(file_fd, want);
}

} // namespace

void try_to_open(const std::string& path, bool read_only) {
    run_child(read_only ? "read" : "open", path, -1);
}

void try_to_grow(int fd, uint64_t bytes) {
    run_child("grow", std::to_string(bytes), fd);
}

std::optional<int> storage_child(int argc, char** argv) {
    if (argc != 4 || std::strcmp(argv[1], marker) != 0)
        return {};
    if (std::strcmp(argv[2], "open") == 0)
        open_and_look(argv[3], false);
    else if (std::strcmp(argv[2], "read") == 0)
        open_and_look(argv[3], true);
    else if (std::strcmp(argv[2], "grow") == 0)
        grow(argv[3]);
    return 0;
}

} // namespace vql

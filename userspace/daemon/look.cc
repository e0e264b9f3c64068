// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/look.h"

#include "base/fd.h"
#include "engine/target.h"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <sys/sysmacros.h>
#include <system_error>
#include <thread>
#include <unistd.h>

namespace vql {

namespace {

constexpr size_t most_threads = 8;

// Sizes from sysfs: opening a device may wait for it.
void look_at_device(sight& s) {
    const std::string sys = "/sys/dev/block/" + std::to_string(major(s.st.st_rdev)) + ":" +
                            std::to_string(minor(s.st.st_rdev));
    const auto number = [&](const char* file, uint64_t& out) {
        return bool(std::ifstream(sys + file) >> out);
    };
    uint64_t sectors = 0, block = 512, read_only = 0;
    number("/size", sectors);
    // A partition has its queue in its parent's folder.
    if (!number("/queue/logical_block_size", block))
        number("/../queue/logical_block_size", block);
    number("/ro", read_only);
    s.bytes = sectors * 512;
    s.block_bytes = uint32_t(block);
    s.read_only = read_only != 0;
}

sight look_at_path(const std::string& path) {
    sight s;
    s.answered = true;
    if (stat(path.c_str(), &s.st) < 0) {
        s.error = errno;
        struct stat folder {};
        if (stat(std::filesystem::path(path).parent_path().c_str(), &folder) < 0)
            s.folder_error = errno;
        else if (!S_ISDIR(folder.st_mode))
            s.folder_error = ENOTDIR;
        return s;
    }
    s.block_device = S_ISBLK(s.st.st_mode);
    if (s.block_device)
        look_at_device(s);
    else if (S_ISREG(s.st.st_mode)) {
        s.bytes = uint64_t(s.st.st_size);
        s.read_only = access(path.c_str(), W_OK) < 0;
    }
    if (s.block_device || S_ISREG(s.st.st_mode)) {
        const unique_fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
        if (fd)
            s.other = other_contents(fd.get(), path, s.block_device, s.bytes);
    }
    return s;
}

// Shared by the threads and whoever waits for them; outlives both. The mutex guards all of it.
struct work {
    std::mutex mutex;
    std::condition_variable answered;
    std::vector<std::string> paths;
    size_t next = 0, done = 0;
    std::map<std::string, sight> seen;

    void run() {
        std::unique_lock lock(mutex);
        while (next < paths.size()) {
            const std::string path = paths[next++];
            lock.unlock();
            sight s = look_at_path(path);
            lock.lock();
            seen[path] = s;
            done++;
            answered.notify_one();
        }
    }
};

} // namespace

std::map<std::string, sight> look_at(const std::vector<std::string>& paths,
                                     std::chrono::milliseconds limit) {
    auto w = std::make_shared<work>();
    w->paths = paths;
    std::sort(w->paths.begin(), w->paths.end());
    w->paths.erase(std::unique(w->paths.begin(), w->paths.end()), w->paths.end());
    for (const std::string& path : w->paths)
        w->seen[path];
    const size_t all = w->paths.size();
    const auto start = [&w](size_t left) {
        for (size_t i = 0; i < std::min(left, most_threads); i++)
            std::thread([w] { w->run(); }).detach();
    };
    start(all);
    std::unique_lock lock(w->mutex);
    for (size_t before = 0; w->done < all; before = w->done) {
        if (w->answered.wait_for(lock, limit, [&] { return w->done != before; }))
            continue;
        if (w->next == all)
            break;
        start(all - w->next); // all that there are hang: others look at what is left
        limit = std::min(limit, std::chrono::milliseconds(500));
    }
    return w->seen;
}

} // namespace vql

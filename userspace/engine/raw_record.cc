// SPDX-License-Identifier: GPL-2.0-only
#include "engine/raw_record.h"

#include "base/fd.h"
#include "base/log.h"

#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sys/stat.h>
#include <utility>

namespace vql {

raw_record::raw_record(std::string file) : file_(std::move(file)) {
    std::ifstream in(file_);
    std::string path;
    for (uint64_t identity = 0; in >> identity && in.get() == ' ' && std::getline(in, path);)
        known_[path] = identity;
}

bool raw_record::has(const std::string& path, uint64_t identity) const {
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(path);
    return found != known_.end() && found->second == identity;
}

result<void> raw_record::add(const std::string& path, uint64_t identity) {
    const std::lock_guard lock(mutex_);
    const auto [at, added] = known_.try_emplace(path, identity);
    if (!added && std::exchange(at->second, identity) == identity)
        return {};
    return path.find('\n') == path.npos ? save() : result<void>(error{path + ": odd name"});
}

void raw_record::keep(const std::function<bool(const std::string& path)>& wanted) {
    const std::lock_guard lock(mutex_);
    if (std::erase_if(known_, [&](const auto& k) { return !wanted(k.first); }) == 0)
        return;
    if (auto ok = save(); !ok)
        log_warning(ok.failure().text);
}

// The whole file anew: a crash leaves the old one or the new one.
result<void> raw_record::save() const {
    std::string text;
    for (const auto& [path, identity] : known_)
        if (path.find('\n') == path.npos)
            text += std::to_string(identity) + " " + path + "\n";
    const std::string fresh = file_ + ".new";
    std::error_code failed;
    const std::filesystem::path folder = std::filesystem::path(file_).parent_path();
    std::filesystem::create_directories(folder.parent_path(), failed);
    mkdir(folder.c_str(), 0700); // as with the notes of what commands did
    const unique_fd fd(open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!fd)
        return errno_error(fresh, errno);
    for (size_t at = 0; at < text.size();) {
        const ssize_t n = write(fd.get(), text.data() + at, text.size() - at);
        if (n < 0 && errno != EINTR)
            return errno_error(fresh, errno);
        at += n > 0 ? size_t(n) : 0;
    }
    if (fsync(fd.get()) < 0 || std::rename(fresh.c_str(), file_.c_str()) < 0)
        return errno_error(file_, errno);
    return {};
}

} // namespace vql

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
    for (id one; in >> one.inode >> one.bytes && in.get() == ' ' && std::getline(in, path);)
        known_[path] = one;
}

bool raw_record::has(const std::string& path, const id& now) const {
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(path);
    return found != known_.end() && found->second.inode == now.inode &&
           found->second.bytes <= now.bytes;
}

result<void> raw_record::add(const std::string& path, const id& now) {
    if (path.find('\n') != path.npos)
        return error{path + ": odd name"};
    std::unique_lock lock(mutex_);
    known_[path] = now;
    const uint64_t mine = ++changed_;
    told_.wait(lock, [&] { return !saving_ || saved_ >= mine; });
    if (saved_ >= mine)
        return {};
    saving_ = true;
    const uint64_t all = changed_;
    const std::string all_text = text();
    lock.unlock();
    auto ok = save(all_text);
    lock.lock();
    saving_ = false;
    if (ok)
        saved_ = all;
    told_.notify_all();
    return ok;
}

void raw_record::keep(const std::function<bool(const std::string& path)>& wanted) {
    const std::lock_guard lock(mutex_);
    if (std::erase_if(known_, [&](const auto& k) { return !wanted(k.first); }) == 0 || saving_)
        return;
    if (auto ok = save(text()); !ok)
        log_warning(ok.failure().text);
}

std::string raw_record::text() const {
    std::string text;
    for (const auto& [path, one] : known_)
        text += std::to_string(one.inode) + " " + std::to_string(one.bytes) + " " + path + "\n";
    return text;
}

// The whole file anew: a crash leaves the old one or the new one.
result<void> raw_record::save(const std::string& text) const {
    const std::string fresh = file_ + ".new";
    std::error_code failed;
    const std::filesystem::path folder = std::filesystem::path(file_).parent_path();
    std::filesystem::create_directories(folder.parent_path(), failed);
    mkdir(folder.c_str(), 0700); // as with the notes of what commands did
    const unique_fd fd(open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!fd)
        return errno_error(fresh, errno);
    for (size_t at = 0; at < text.size();) {
        const ssize_t n = ::write(fd.get(), text.data() + at, text.size() - at);
        if (n < 0 && errno != EINTR)
            return errno_error(fresh, errno);
        at += n > 0 ? size_t(n) : 0;
    }
    if (fsync(fd.get()) < 0 || std::rename(fresh.c_str(), file_.c_str()) < 0)
        return errno_error(file_, errno);
    return {};
}

} // namespace vql

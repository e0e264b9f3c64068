// SPDX-License-Identifier: GPL-2.0-only
#include "frontend/socket_access.h"

#include <cerrno>
#include <filesystem>
#include <sys/stat.h>
#include <unistd.h>

namespace vql {

namespace {

std::string folder_of(const std::string& path) {
    return std::filesystem::path(path).parent_path().string();
}

result<void> own(const std::string& path, uid_t user, gid_t group) {
    struct stat st {};
    if (lstat(path.c_str(), &st) < 0)
        return errno_error(path, errno);
    if ((user != uid_t(-1) && st.st_uid != user) || (group != gid_t(-1) && st.st_gid != group))
        if (lchown(path.c_str(), user, group) < 0)
            return errno_error(path + ": cannot be given to its socket_user and socket_group "
                                      "(CAP_CHOWN is needed)",
                               errno);
    return {};
}

result<void> set_mode(const std::string& path, uint32_t mode) {
    if (chmod(path.c_str(), mode) < 0)
        return errno_error(path, errno);
    return {};
}

} // namespace

result<void> give_access(const std::string& path, const socket_access& access) {
    struct stat folder {};
    if (stat(folder_of(path).c_str(), &folder) < 0)
        return errno_error(folder_of(path), errno);
    const gid_t own_group = folder.st_mode & S_ISGID ? folder.st_gid : getegid();
    const gid_t group = access.group == gid_t(-1) ? own_group : access.group;
    const uid_t user = access.user == uid_t(-1) ? geteuid() : access.user;
    // A mode is for the owner to change: ours first, and shut while the group changes.
    if (auto ok = own(path, geteuid(), gid_t(-1)); !ok)
        return ok;
    if (auto ok = set_mode(path, 0); !ok)
        return ok;
    if (auto ok = own(path, uid_t(-1), group); !ok)
        return ok;
    if (auto ok = set_mode(path, access.mode); !ok)
        return ok;
    return own(path, user, gid_t(-1));
}

std::string why_out_of_reach(const std::string& path) {
    struct stat socket {
    }, folder{};
    const std::string in = folder_of(path);
    if (lstat(path.c_str(), &socket) < 0 || stat(in.c_str(), &folder) < 0)
        return {};
    const bool all_may = folder.st_mode & S_IXOTH;
    const bool user_may = all_may || socket.st_uid == 0 ||
                          (socket.st_uid == folder.st_uid && folder.st_mode & S_IXUSR);
    const bool group_may = all_may || !(socket.st_mode & S_IWGRP) || socket.st_gid == 0 ||
                           (socket.st_gid == folder.st_gid && folder.st_mode & S_IXGRP);
    if (user_may && group_may)
        return {};
    return std::string("its socket's ") + (user_may ? "group" : "user") + " cannot enter " + in +
           "; give the folder that group, or let all pass: chmod o+x " + in;
}

} // namespace vql

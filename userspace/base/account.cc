// SPDX-License-Identifier: GPL-2.0-only
#include "base/account.h"

#include <cerrno>
#include <cstdint>
#include <grp.h>
#include <pwd.h>
#include <vector>

namespace vql {

namespace {

// @look_up is getpwnam_r or getgrnam_r, and @number the entry's.
template <class Entry, class LookUp, class Number>
result<uid_t> account(const char* kind, const std::string& name, LookUp look_up, Number number) {
    if (!name.empty() && name.size() <= 10 && name.find_first_not_of("0123456789") == name.npos &&
        std::stoull(name) < UINT32_MAX)
        return static_cast<uid_t>(std::stoull(name));
    std::vector<char> buffer(1024);
    for (;;) {
        Entry entry{};
        Entry* found = nullptr;
        const int err = look_up(name.c_str(), &entry, buffer.data(), buffer.size(), &found);
        if (err == ERANGE && buffer.size() < (1 << 24)) { // a group of many members
            buffer.resize(buffer.size() * 2);
            continue;
        }
        if (found)
            return number(*found);
        return error{std::string("there is no ") + kind + " " + name};
    }
}

} // namespace

result<uid_t> user_id(const std::string& name) {
    return account<passwd>("user", name, getpwnam_r, [](const passwd& p) { return p.pw_uid; });
}

result<gid_t> group_id(const std::string& name) {
    return account<group>("group", name, getgrnam_r, [](const group& g) { return g.gr_gid; });
}

} // namespace vql

// SPDX-License-Identifier: GPL-2.0-only
#include "base/lock_holder.h"

#include <csignal>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <sys/sysmacros.h>

namespace vql {

pid_t lock_holder(const struct stat& st) {
    std::ifstream locks("/proc/locks");
    std::string line;
    while (std::getline(locks, line)) { // "1: FLOCK  ADVISORY  WRITE 4242 fe:01:131 0 EOF"
        std::istringstream words(line);
        std::string number, type, mode, access, file;
        pid_t pid = 0;
        unsigned major_number = 0, minor_number = 0;
        unsigned long inode = 0;
        if (words >> number >> type >> mode >> access >> pid >> file && type == "FLOCK" &&
            std::sscanf(file.c_str(), "%x:%x:%lu", &major_number, &minor_number, &inode) == 3 &&
            inode == st.st_ino && major_number == major(st.st_dev) &&
            minor_number == minor(st.st_dev))
            return pid;
    }
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

} // namespace vql

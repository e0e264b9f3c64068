// SPDX-License-Identifier: GPL-2.0-only
#include "base/peer.h"

#include "base/fd.h"

#include <array>
#include <fcntl.h>
#include <sys/socket.h>

namespace vql {

peer peer_of(int socket) {
    ucred credentials{};
    socklen_t size = sizeof(credentials);
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0 ||
        credentials.pid <= 0)
        return {};
    return process_of(credentials.pid);
}

peer process_of(pid_t pid) {
    peer p;
    p.pid = pid;
    // Reading it waits for nothing that the process does (its memory map would).
    const std::string path = "/proc/" + std::to_string(p.pid) + "/comm";
    const unique_fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::array<char, 64> text{};
    const ssize_t n = file ? ::read(file.get(), text.data(), text.size()) : -1;
    if (n > 0)
        p.command.assign(text.data(), size_t(n - (text[size_t(n) - 1] == '\n' ? 1 : 0)));
    return p;
}

std::string peer::text() const {
    if (!pid)
        return "a process that cannot be named here";
    return "pid " + std::to_string(pid) + (command.empty() ? "" : " (" + command + ")");
}

} // namespace vql

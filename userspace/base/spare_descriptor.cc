// SPDX-License-Identifier: GPL-2.0-only
#include "base/spare_descriptor.h"

#include "base/log.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/resource.h>
#include <sys/socket.h>

namespace vql {

namespace {

int accept_one(int listener) {
    return accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
}

std::string limit_text() {
    rlimit l{};
    getrlimit(RLIMIT_NOFILE, &l);
    return std::to_string(l.rlim_cur);
}

} // namespace

spare_descriptor::accepted spare_descriptor::accept(int listener) {
    accepted a;
    a.fd.reset(accept_one(listener));
    const int err = a.fd ? 0 : errno;
    const bool none = err == EMFILE || err == ENFILE || err == ENOBUFS || err == ENOMEM;
    const auto now = std::chrono::steady_clock::now();
    short_ = false;
    if (!none) {
        // Where they come and go, a line a second.
        if (a.fd && told_ && now - last_short_ > std::chrono::seconds(1)) {
            told_ = false;
            log_info("clients: there are file descriptors again");
        }
        return a;
    }
    last_short_ = now;
    if (!std::exchange(told_, true))
        log_error(std::string("clients: no file descriptor is left (") + std::strerror(err) +
                  "; this process may have " + limit_text() +
                  "): new ones are turned away until there is. LimitNOFILE= in the unit raises it");
    fd_.reset();
    a.fd.reset(accept_one(listener));
    a.spare = bool(a.fd);
    // Somebody else took its place: the client waits, and whoever waits for it must not spin.
    short_ = !a.fd && errno != EAGAIN;
    if (!a.spare)
        refill();
    return a;
}

bool spare_descriptor::refill() {
    if (!fd_)
        fd_.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    return bool(fd_);
}

} // namespace vql

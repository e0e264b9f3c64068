// SPDX-License-Identifier: GPL-2.0-only
#include "posix.h"

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

namespace vql::guest {

void throw_errno(const std::string& what) {
    throw guest_error(what + ": " + std::strerror(errno));
}

void unique_fd::reset() {
    if (fd_ >= 0) {
        close(fd_);
    }
    fd_ = -1;
}

mapping::mapping(int fd, size_t bytes, uint64_t offset) : bytes_(bytes) {
    address_ =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(offset));
    if (address_ == MAP_FAILED) {
        address_ = nullptr;
        throw_errno("mmap");
    }
}

mapping::~mapping() {
    if (address_ != nullptr) {
        munmap(address_, bytes_);
    }
}

bool sanitized_build() {
#if defined(VQL_SANITIZED)
    return true;
#else
    return false;
#endif
}

int deadline::poll_ms() const {
    auto left = std::chrono::duration_cast<milliseconds>(end_ - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
        return 0;
    }
    return left.count() >= INT_MAX ? INT_MAX : static_cast<int>(left.count()) + 1;
}

milliseconds default_timeout() {
    const char* slower = std::getenv("VQL_SLOWER");
    return milliseconds(60000) * (slower != nullptr ? std::strtol(slower, nullptr, 0) : 1);
}

bool wait_readable(int fd, const deadline& until) {
    for (;;) {
        pollfd entry{fd, POLLIN, 0};
        int ready = poll(&entry, 1, until.poll_ms());
        if (ready > 0) {
            return true;
        }
        if (ready < 0 && errno != EINTR) {
            throw_errno("poll");
        }
        if (until.passed()) {
            return false;
        }
    }
}

unique_fd make_memfd(const char* name, uint64_t bytes) {
    unique_fd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd || ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
        throw_errno("memfd");
    }
    return fd;
}

unique_fd make_eventfd() {
    unique_fd fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!fd) {
        throw_errno("eventfd");
    }
    return fd;
}

void signal_eventfd(int fd) {
    uint64_t one = 1;
    // EAGAIN: the counter is full, so the other side has been told often enough.
    if (write(fd, &one, sizeof(one)) != sizeof(one) && errno != EAGAIN) {
        throw_errno("eventfd write");
    }
}

uint64_t take_eventfd(int fd, const deadline& until) {
    uint64_t count = 0;
    while (read(fd, &count, sizeof(count)) != sizeof(count)) {
        if (errno != EAGAIN && errno != EINTR) {
            throw_errno("eventfd read");
        }
        if (!wait_readable(fd, until)) {
            return 0;
        }
    }
    return count;
}

std::string hex(uint64_t value) {
    static const char digits[] = "0123456789abcdef";
    std::string text;
    do {
        text.insert(text.begin(), digits[value % 16]);
        value /= 16;
    } while (value != 0);
    return "0x" + text;
}

} // namespace vql::guest

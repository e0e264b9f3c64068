// SPDX-License-Identifier: GPL-2.0-only
// Owners of file descriptors and memory mappings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace vql {

class unique_fd {
  public:
    unique_fd() = default;
    explicit unique_fd(int fd) : fd_(fd) {}
    unique_fd(unique_fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    unique_fd& operator=(unique_fd&& other) noexcept {
        if (this != &other)
            reset(std::exchange(other.fd_, -1));
        return *this;
    }
    unique_fd(const unique_fd&) = delete;
    unique_fd& operator=(const unique_fd&) = delete;
    ~unique_fd() { reset(); }

    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }
    int release() { return std::exchange(fd_, -1); }
    void reset(int fd = -1) {
        if (fd_ >= 0)
            ::close(fd_);
        fd_ = fd;
    }

  private:
    int fd_ = -1;
};

// A mapping made by mmap(2); unmapped with its owner.
class mapping {
  public:
    mapping() = default;
    mapping(void* base, size_t bytes) : base_(base), bytes_(bytes) {}
    mapping(mapping&& other) noexcept
        : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    mapping& operator=(mapping&& other) noexcept {
        std::swap(base_, other.base_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    mapping(const mapping&) = delete;
    mapping& operator=(const mapping&) = delete;
    ~mapping() {
        if (base_)
            ::munmap(base_, bytes_);
    }

    // Empty on failure, with errno set. @flags as for mmap(2).
    static mapping map(int fd, size_t bytes, int flags, off_t offset = 0,
                       int prot = PROT_READ | PROT_WRITE) {
        void* base = ::mmap(nullptr, bytes, prot, flags, fd, offset);
        return base == MAP_FAILED ? mapping() : mapping(base, bytes);
    }

    uint8_t* data() const { return static_cast<uint8_t*>(base_); }
    size_t size() const { return bytes_; }
    explicit operator bool() const { return base_ != nullptr; }

  private:
    void* base_ = nullptr;
    size_t bytes_ = 0;
};

} // namespace vql

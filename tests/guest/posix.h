// SPDX-License-Identifier: GPL-2.0-only
// What the test driver needs of the system: owned descriptors, bounded waits, errors with a reason.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

namespace vql::guest {

using std::chrono::milliseconds;

// Anything that went wrong on the driver's side of the device.
struct guest_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};
// The other side did not answer in time.
struct timeout_error : guest_error {
    using guest_error::guest_error;
};
// The device answered a request of ours with an error.
struct refused : guest_error {
    using guest_error::guest_error;
};
// The other side closed the connection.
struct disconnected : guest_error {
    using guest_error::guest_error;
};

[[noreturn]] void throw_errno(const std::string& what);

class unique_fd {
  public:
    unique_fd() = default;
    explicit unique_fd(int fd) : fd_(fd) {}
    unique_fd(unique_fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    unique_fd& operator=(unique_fd&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~unique_fd() { reset(); }

    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }
    void reset();

  private:
    int fd_ = -1;
};

// A shared mapping of a file; the descriptor may be closed once it is mapped.
class mapping {
  public:
    mapping() = default;
    mapping(int fd, size_t bytes, uint64_t offset = 0);
    mapping(mapping&& other) noexcept
        : address_(std::exchange(other.address_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {
    }
    mapping& operator=(mapping&& other) noexcept {
        std::swap(address_, other.address_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~mapping();

    std::span<std::byte> bytes() const { return {static_cast<std::byte*>(address_), bytes_}; }

  private:
    void* address_ = nullptr;
    size_t bytes_ = 0;
};

// Builds with a sanitizer run several times slower: what is measured by the clock is skipped there.
bool sanitized_build();

// Every wait of the driver ends by one of these.
class deadline {
  public:
    explicit deadline(milliseconds after) : end_(std::chrono::steady_clock::now() + after) {}
    bool passed() const { return std::chrono::steady_clock::now() >= end_; }
    int poll_ms() const;

  private:
    std::chrono::steady_clock::time_point end_;
};

// Long enough for a loaded machine, a sanitizer, an emulated CPU; only a bug waits for all of it.
milliseconds default_timeout();

// True once fd is readable (or has hung up), false when time is up.
bool wait_readable(int fd, const deadline& until);

unique_fd make_memfd(const char* name, uint64_t bytes);
unique_fd make_eventfd();
void signal_eventfd(int fd);
// Takes the eventfd's count, so many signals; 0 if nothing came before time was up.
uint64_t take_eventfd(int fd, const deadline& until);

std::string hex(uint64_t value);

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
    return std::as_bytes(std::span(&value, 1));
}

} // namespace vql::guest

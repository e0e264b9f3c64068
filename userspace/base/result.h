// SPDX-License-Identifier: GPL-2.0-only
// Errors of the control path: a value, or a text that tells the operator what failed and how to
// mend it. (std::expected comes with C++23.) The I/O path uses plain status codes instead.
#pragma once

#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace vql {

struct error {
    std::string text;
};

// "CONTEXT: reason of errno ERR"
inline error errno_error(std::string context, int err) {
    return {std::move(context) + ": " + std::strerror(err)};
}

template <class T>
class [[nodiscard]] result {
  public:
    result(T value) : state_(std::move(value)) {}
    result(error failure) : state_(std::move(failure)) {}

    explicit operator bool() const { return state_.index() == 0; }
    T& operator*() { return std::get<0>(state_); }
    const T& operator*() const { return std::get<0>(state_); }
    T* operator->() { return &std::get<0>(state_); }
    const T* operator->() const { return &std::get<0>(state_); }
    const error& failure() const { return std::get<1>(state_); }

  private:
    std::variant<T, error> state_;
};

template <>
class [[nodiscard]] result<void> {
  public:
    result() = default;
    result(error failure) : failure_(std::move(failure)) {}

    explicit operator bool() const { return !failure_; }
    const error& failure() const { return *failure_; }

  private:
    std::optional<error> failure_;
};

} // namespace vql

// SPDX-License-Identifier: GPL-2.0-only
// BPF objects and links: their life, and what libbpf and the verifier say of them.
#pragma once

#include <bpf/libbpf.h>
#include <memory>
#include <string>

namespace vql {

struct bpf_object_closer {
    void operator()(bpf_object* o) const { bpf_object__close(o); }
};
using bpf_object_ptr = std::unique_ptr<bpf_object, bpf_object_closer>;

struct bpf_link_closer {
    void operator()(bpf_link* l) const { bpf_link__destroy(l); }
};
using bpf_link_ptr = std::unique_ptr<bpf_link, bpf_link_closer>;

// While one lives, the warnings of libbpf on this thread are in the youngest; else nobody hears
// them, for our own messages carry the reason as errno. A refused program's verifier log is among
// them.
class libbpf_words {
  public:
    libbpf_words();
    ~libbpf_words();
    libbpf_words(const libbpf_words&) = delete;
    libbpf_words& operator=(const libbpf_words&) = delete;

    const std::string& text() const { return text_; }

  private:
    std::string text_;
    std::string* outer_;
};

} // namespace vql

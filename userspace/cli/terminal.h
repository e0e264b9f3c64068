// SPDX-License-Identifier: GPL-2.0-only
// The operator's terminal: what it can do, how large it is, and single keys from it.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <termios.h>

namespace vql {

// Is standard output a terminal that a screen can be drawn anew on? Not where TERM is dumb, or
// unset.
bool can_redraw();
// May it be coloured? Not where NO_COLOR is set, to anything (no-color.org).
bool may_colour();

struct terminal_size {
    size_t rows = 24, columns = 80;
};
// As it is now; 24 by 80 where nobody knows.
terminal_size size_of_terminal();
// Characters a line of a table is cut to: as many as a terminal has, 80 at least; 0, which is none,
// where standard output is a file or a pipe: a program reads whole words.
size_t width_of_output();

// While it lives, and standard input and output are a terminal: keys come at once and are not
// echoed, the cursor is hidden, and SIGINT, SIGTERM and SIGHUP end a wait instead of the process,
// so that the terminal is given back as it was.
class keyboard {
  public:
    // Others than these are the character itself.
    enum key : int { none = 0, up = 0x100, down, page_up, page_down, home, end, quit };

    keyboard();
    ~keyboard();
    keyboard(const keyboard&) = delete;
    keyboard& operator=(const keyboard&) = delete;

    // The next key, none when @patience is over or the terminal's size has changed, quit after one
    // of the signals and when the terminal is gone.
    int next(std::chrono::milliseconds patience);

  private:
    int first_typed();

    bool active_ = false;
    std::string typed_; // and not taken yet
    termios before_{};
};

} // namespace vql

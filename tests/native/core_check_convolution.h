#pragma once

// Ends the program through `require` where something is wrong.
void check_convolutions(void (*require)(bool, const char*));

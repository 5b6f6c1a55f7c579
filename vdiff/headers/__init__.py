"""What files say they hold, checked before anything is believed, allocated or executed. No torch here."""
